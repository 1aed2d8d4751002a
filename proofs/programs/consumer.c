/* An example of a consumer: it lends one dollar token against the attested margin of accounts, without interest.
 *
 * What every consumer does, in this order: ask who may act for the account, draw from the registry by CPI under the
 * signature of the address that is listed there, then lend. The token is taken at one US dollar.
 *
 * Accounts (PDAs of this program; little-endian; never closed):
 *   lender   ["lender", registry, mint]   what is listed at the registry, and the authority of the pool
 *            152 bytes: 0 discriminator "cmLENDR1"  8 registry 32  40 mint 32  72 registry's program 32
 *            104 chain 39 (CAIP-2 text, "solana:" and 32 characters)  143 bump u8  144 scale u64 (1e-8 USD a base unit)
 *   pool     ["pool", lender]   a token account: what can be lent; fund it by a transfer
 *   loan     ["loan", lender, account]   80 bytes: 0 "cmLOANR1"  8 lender 32  40 account 32  72 debt u64 (base units)
 *
 * Instructions (first byte), integers little-endian; S signer, W writable:
 *   0 init    chain 39; its keccak256 must be the registry's destination
 *             accounts: payer SW, lender W, pool W, registry, mint, token program, system program
 *   1 borrow  salt 32, amount u64; the account is the one that the signer controls under this salt:
 *             keccak256("crossmargin/account/1" ‖ chain ‖ ":" ‖ base58(controller) ‖ salt)
 *             accounts: controller SW, lender, loan W, pool W, token account W, mint, registry, registry's program,
 *             consumer, margin W, drawn W (these three as the registry's draw has them), token program, system program
 *   2 repay   account 32, amount u64, of which the debt is taken at most; anybody may pay
 *             accounts: payer S, lender, loan W, pool W, token account W, mint, registry, registry's program,
 *             margin W, drawn W, token program
 *
 * Refusals are custom error codes; infra/devnet/svm_consumer.py mirrors this table. What the registry or the token
 * program refuses ends the transaction with that program's code.
 */
#include "quorum.h"

enum refusal {
  OK = 0,
  INSTRUCTION_MALFORMED = 1, /* unknown tag or wrong length */
  ACCOUNTS_WRONG = 2,        /* too few or too many accounts */
  PAYER_NOT_SIGNER = 3,      /* the controller or payer must sign, and be writable where it pays */
  PROGRAM_WRONG = 4,         /* not the token program, the system program or the registry's program */
  ADDRESS_WRONG = 5,         /* not the address its seeds give */
  ALREADY_INITIALISED = 6,   /* the lender exists */
  SYSVAR_UNREADABLE = 7,     /* rent cannot be used */
  LENDER_WRONG = 8,          /* not a lender of this program */
  REGISTRY_WRONG = 9,        /* not a registry, or not this lender's */
  CHAIN_WRONG = 10,          /* the text is not that of the registry's destination */
  MINT_WRONG = 11,           /* not an initialised SPL Token mint of at most eight decimals, or not this lender's */
  POOL_WRONG = 12,           /* not this lender's pool, or tokens would go from the pool to the pool */
  LOAN_WRONG = 13,           /* not the loan of this account */
  AMOUNT_ZERO = 20,          /* nothing asked for, or nothing owed */
  AMOUNT_TOO_LARGE = 21,     /* the debt passes 2^64 */
};

enum { LENDER_REGISTRY = 8, LENDER_MINT = 40, LENDER_PROGRAM = 72, LENDER_CHAIN = 104, LENDER_BUMP = 143,
       LENDER_SCALE = 144, LENDER_LEN = 152 };
enum { LOAN_LENDER = 8, LOAN_ACCOUNT = 40, LOAN_DEBT = 72, LOAN_LEN = 80 };
enum { CHAIN_LEN = 39, USD_DECIMALS = 8, REGISTRY_DRAW = 13, REGISTRY_REPAY = 14 };
/* SPL Token: Mint 82 bytes (decimals at 44, initialised at 45), Account 165 bytes */
enum { MINT_DECIMALS = 44, MINT_INITIALISED = 45, MINT_LEN = 82, TOKEN_LEN = 165 };

#define LENDER_DISCRIMINATOR 0x3152444e454c6d63UL /* "cmLENDR1" */
#define LOAN_DISCRIMINATOR 0x31524e414f4c6d63UL   /* "cmLOANR1" */

/* TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA */
static const key32 TOKEN_PROGRAM = {{6,   221, 246, 225, 215, 101, 161, 147, 217, 203, 225, 70,  206, 235, 121, 172,
                                     28,  180, 133, 237, 95,  91,  55,  145, 58,  140, 245, 133, 126, 255, 0,   169}};

INLINE void lender_seeds(pda *p, const void *registry, const void *mint) {
  p->seeds[0] = (slice){"lender", 6};
  p->seeds[1] = (slice){registry, 32};
  p->seeds[2] = (slice){mint, 32};
  p->count = 3;
}
INLINE void pool_seeds(pda *p, const key32 *lender) {
  p->seeds[0] = (slice){"pool", 4};
  p->seeds[1] = (slice){lender, 32};
  p->count = 2;
}
INLINE void loan_seeds(pda *p, const key32 *lender, const u8 *account_id) {
  p->seeds[0] = (slice){"loan", 4};
  p->seeds[1] = (slice){lender, 32};
  p->seeds[2] = (slice){account_id, 32};
  p->count = 3;
}

/* Append base58 of 32 bytes to `out`; return its length, 32 to 44. */
static u64 base58(const u8 *key, u8 *out) {
  static const char ALPHABET[] = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
  u8 digits[45];
  u64 limbs[8], zeros = 0, first = 0, n = 0;
  for (u64 i = 0; i < 8; i++) limbs[i] = get32be(key + 4 * i);
  for (u64 group = 45; group; group -= 5) { /* nine divisions by 58^5 give 45 digits, the last ones first */
    u64 rest = 0;
    for (u64 i = 0; i < 8; i++) {
      u64 value = rest << 32 | limbs[i];
      limbs[i] = value / 656356768;
      rest = value % 656356768;
    }
    for (u64 i = 1; i <= 5; i++, rest /= 58) digits[group - i] = (u8)(rest % 58);
  }
  while (zeros < 32 && !key[zeros]) out[n++] = '1', zeros++; /* a leading zero byte is a leading "1" */
  while (first < 45 && !digits[first]) first++;
  while (first < 45) out[n++] = (u8)ALPHABET[digits[first++]];
  return n;
}

static u64 init(const input *in) {
  if (in->len != 1 + CHAIN_LEN) return INSTRUCTION_MALFORMED;
  if (in->count != 7) return ACCOUNTS_WRONG;
  account *payer = in->accounts, *lender = payer + 1, *pool = payer + 2;
  const account *registry = payer + 3, *mint = payer + 4;
  const u8 *chain = in->data + 1;
  if (!payer->signer || !payer->writable) return PAYER_NOT_SIGNER;
  if (!same32(payer[5].key, &TOKEN_PROGRAM) || !same32(payer[6].key, &SYSTEM_PROGRAM)) return PROGRAM_WRONG;
  if (!is_registry_data(registry->data, registry->data_len)) return REGISTRY_WRONG;
  u8 hash[32];
  keccak(chain, CHAIN_LEN, hash);
  if (!same32(hash, registry->data + REGISTRY_DESTINATION)) return CHAIN_WRONG;
  if (!same32(mint->owner, &TOKEN_PROGRAM) || mint->data_len != MINT_LEN || mint->data[MINT_INITIALISED] != 1 ||
      mint->data[MINT_DECIMALS] > USD_DECIMALS)
    return MINT_WRONG;

  pda at_lender, at_pool;
  lender_seeds(&at_lender, registry->key, mint->key);
  pool_seeds(&at_pool, lender->key);
  if (!is_at_canonical(&at_lender, lender, in->program) || !is_at_canonical(&at_pool, pool, in->program))
    return ADDRESS_WRONG;
  if (!is_untouched(lender)) return ALREADY_INITIALISED;
  signer_seeds by_lender = {at_lender.seeds, at_lender.count + 1}, by_pool = {at_pool.seeds, at_pool.count + 1};
  if (create_pda(in, lender, LENDER_LEN, in->program, &by_lender) ||
      create_pda(in, pool, TOKEN_LEN, &TOKEN_PROGRAM, &by_pool))
    return SYSVAR_UNREADABLE;
  u8 data[33];
  data[0] = 18; /* InitializeAccount3: the authority is in the data */
  copy32(data + 1, lender->key);
  meta metas[2] = {{pool->key, 1, 0}, {mint->key, 0, 0}};
  instruction ix = {&TOKEN_PROGRAM, metas, 2, data, 33};
  sol_invoke_signed_c(&ix, in->accounts, in->count, 0, 0);

  u64 scale = 1;
  for (u64 i = mint->data[MINT_DECIMALS]; i < USD_DECIMALS; i++) scale *= 10;
  u8 *l = lender->data;
  put64(l, LENDER_DISCRIMINATOR);
  copy32(l + LENDER_REGISTRY, registry->key);
  copy32(l + LENDER_MINT, mint->key);
  copy32(l + LENDER_PROGRAM, registry->owner);
  sol_memcpy_(l + LENDER_CHAIN, chain, CHAIN_LEN);
  l[LENDER_BUMP] = at_lender.bump;
  put64(l + LENDER_SCALE, scale);
  return OK;
}

/* What borrow and repay begin with: who, lender, loan, pool, token account, mint, registry, registry's program. */
static u64 check_lender(const input *in, pda *at_lender) {
  const account *all = in->accounts, *lender = all + 1;
  if (!is_state_of(lender, in->program, LENDER_LEN, LENDER_DISCRIMINATOR)) return LENDER_WRONG;
  const u8 *l = lender->data;
  lender_seeds(at_lender, l + LENDER_REGISTRY, l + LENDER_MINT);
  if (!is_at(at_lender, l[LENDER_BUMP], lender, in->program)) return LENDER_WRONG;
  if (!same32(all[5].key, l + LENDER_MINT)) return MINT_WRONG;
  if (!same32(all[6].key, l + LENDER_REGISTRY)) return REGISTRY_WRONG;
  if (!same32(all[7].key, l + LENDER_PROGRAM)) return PROGRAM_WRONG;
  pda at_pool;
  pool_seeds(&at_pool, lender->key);
  if (!is_at_canonical(&at_pool, all + 3, in->program) || same32(all[3].key, all[4].key)) return POOL_WRONG;
  return OK;
}

/* TransferChecked of SPL Token. A refusal there ends the transaction. (Inlined: BPF passes five arguments at most.) */
INLINE void transfer(const input *in, const account *from, const account *to, const account *authority, u64 amount,
                     const signer_seeds *seeds) {
  const account *mint = in->accounts + 5;
  u8 data[10];
  data[0] = 12;
  put64(data + 1, amount);
  data[9] = mint->data[MINT_DECIMALS];
  meta metas[4] = {{from->key, 1, 0}, {mint->key, 0, 0}, {to->key, 1, 0}, {authority->key, 0, 1}};
  instruction ix = {&TOKEN_PROGRAM, metas, 4, data, 10};
  sol_invoke_signed_c(&ix, in->accounts, in->count, seeds, seeds ? 1 : 0);
}

/* The registry's draw or repay, for `amount` base units, signed by the lender. */
INLINE void tell_registry(const input *in, u8 tag, const u8 *account_id, u64 amount, const meta *metas, u64 count,
                          const signer_seeds *lender) {
  u8 data[49];
  u64 scale = get64(in->accounts[1].data + LENDER_SCALE); /* at most 10^8, so that halves of the product fit */
  data[0] = tag;
  copy32(data + 1, account_id);
  put128(data + 33, ((u128)((amount >> 32) * scale) << 32) + (amount & 0xffffffff) * scale);
  instruction ix = {in->accounts[7].key, metas, count, data, 49};
  sol_invoke_signed_c(&ix, in->accounts, in->count, lender, 1);
}

static u64 borrow(const input *in) {
  if (in->len != 41) return INSTRUCTION_MALFORMED;
  if (in->count != 13) return ACCOUNTS_WRONG;
  const account *all = in->accounts, *controller = all, *lender = all + 1;
  account *loan = in->accounts + 2;
  const u8 *salt = in->data + 1;
  u64 amount = get64(in->data + 33), refused;
  if (!controller->signer || !controller->writable) return PAYER_NOT_SIGNER;
  if (!same32(all[11].key, &TOKEN_PROGRAM) || !same32(all[12].key, &SYSTEM_PROGRAM)) return PROGRAM_WRONG;
  pda at_lender, at_loan;
  if ((refused = check_lender(in, &at_lender))) return refused;
  if (!amount) return AMOUNT_ZERO;

  u8 address[45], account_id[32];
  address[0] = ':';
  slice parts[4] = {{"crossmargin/account/1", 21}, {lender->data + LENDER_CHAIN, CHAIN_LEN},
                    {address, 1 + base58(controller->key->bytes, address + 1)}, {salt, 32}};
  sol_keccak256(parts, 4, account_id);

  loan_seeds(&at_loan, lender->key, account_id);
  if (!is_at_canonical(&at_loan, loan, in->program)) return LOAN_WRONG;
  if (is_untouched(loan)) {
    signer_seeds by_loan = {at_loan.seeds, at_loan.count + 1};
    if (create_pda(in, loan, LOAN_LEN, in->program, &by_loan)) return SYSVAR_UNREADABLE;
    put64(loan->data, LOAN_DISCRIMINATOR);
    copy32(loan->data + LOAN_LENDER, lender->key);
    copy32(loan->data + LOAN_ACCOUNT, account_id);
  }
  u64 debt = get64(loan->data + LOAN_DEBT);
  if (debt + amount < debt) return AMOUNT_TOO_LARGE;
  put64(loan->data + LOAN_DEBT, debt + amount);

  signer_seeds by_lender = {at_lender.seeds, at_lender.count + 1};
  meta metas[7] = {{controller->key, 1, 1}, {lender->key, 0, 1}, {all[6].key, 0, 0}, {all[8].key, 0, 0},
                   {all[9].key, 1, 0},      {all[10].key, 1, 0}, {all[12].key, 0, 0}};
  tell_registry(in, REGISTRY_DRAW, account_id, amount, metas, 7, &by_lender);
  transfer(in, all + 3, all + 4, lender, amount, &by_lender);
  return OK;
}

static u64 repay(const input *in) {
  if (in->len != 41) return INSTRUCTION_MALFORMED;
  if (in->count != 11) return ACCOUNTS_WRONG;
  const account *all = in->accounts, *payer = all, *lender = all + 1, *loan = all + 2;
  const u8 *account_id = in->data + 1;
  u64 amount = get64(in->data + 33), refused;
  if (!payer->signer) return PAYER_NOT_SIGNER;
  if (!same32(all[10].key, &TOKEN_PROGRAM)) return PROGRAM_WRONG;
  pda at_lender, at_loan;
  if ((refused = check_lender(in, &at_lender))) return refused;
  loan_seeds(&at_loan, lender->key, account_id);
  if (!is_state_of(loan, in->program, LOAN_LEN, LOAN_DISCRIMINATOR) || !is_at_canonical(&at_loan, loan, in->program))
    return LOAN_WRONG;
  u64 debt = get64(loan->data + LOAN_DEBT);
  if (amount > debt) amount = debt;
  if (!amount) return AMOUNT_ZERO;
  put64(loan->data + LOAN_DEBT, debt - amount);

  transfer(in, all + 4, all + 3, payer, amount, 0);
  signer_seeds by_lender = {at_lender.seeds, at_lender.count + 1};
  meta metas[4] = {{lender->key, 0, 1}, {all[6].key, 0, 0}, {all[8].key, 1, 0}, {all[9].key, 1, 0}};
  tell_registry(in, REGISTRY_REPAY, account_id, amount, metas, 4, &by_lender);
  return OK;
}

u64 entrypoint(u8 *region) {
  account accounts[13];
  input in = {accounts, 0, 0, 0, 0};
  if (parse_input(region, &in, 13)) return ACCOUNTS_WRONG;
  if (!in.len) return INSTRUCTION_MALFORMED;
  switch (in.data[0]) {
    case 0: return init(&in);
    case 1: return borrow(&in);
    case 2: return repay(&in);
    default: return INSTRUCTION_MALFORMED;
  }
}
