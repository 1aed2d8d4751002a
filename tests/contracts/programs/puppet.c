/* A program that owns one PDA, ["puppet"], and lets it sign whatever it is asked to: for tests only.
 *
 * Instruction: the bump of the PDA, then the data of the call to make.
 * Accounts: the program to call, then that call's accounts; the PDA among them signs, the others as they did here.
 */
#include "sol.h"

enum refusal { OK = 0, MALFORMED = 1 };

u64 entrypoint(u8 *region) {
  account accounts[8];
  meta metas[8];
  input in = {accounts, 0, 0, 0, 0};
  if (parse_input(region, &in, 8) || !in.count || !in.len) return MALFORMED;
  u8 bump = in.data[0];
  slice seeds[2] = {{"puppet", 6}, {&bump, 1}};
  key32 self;
  if (sol_create_program_address(seeds, 2, in.program, &self)) return MALFORMED;
  for (u64 i = 1; i < in.count; i++) {
    const account *a = in.accounts + i;
    metas[i - 1] = (meta){a->key, a->writable, a->signer || same32(a->key, &self)};
  }
  signer_seeds signer = {seeds, 2};
  instruction call = {in.accounts->key, metas, in.count - 1, in.data + 1, in.len - 1};
  sol_invoke_signed_c(&call, in.accounts, in.count, &signer, 1);
  return OK;
}
