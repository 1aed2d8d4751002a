/* Links of program-derived addresses: a PDA agrees, on its own chain, to back a margin account.
 *
 * A PDA has no key, so it cannot sign a text. Its program signs for it inside a transaction: it calls this program with
 * the PDA as signer, and this program records what the PDA agreed to. The aggregator looks for the record at each
 * reading, and its address, ["link", deploymentId, member, account], can be no other member's.
 * The owner of a PDA decides by its own program when to call; a program that signs whatever it is asked gives its PDAs
 * away here as everywhere.
 *
 * Account (a PDA of this program; little-endian; never closed):
 *   record   ["link", deploymentId, member, account]
 *            176 bytes: 0 discriminator "cmLINKR1"  8 deploymentId 32  40 member 32  72 account 32
 *            104 controller 32 (keccak of its CAIP-10 text)  136 nonce u64  144 expiry u64
 *            152 revokeNonce u64  160 revokeExpiry u64  168 revoked u8  169 bump u8  170 zero 6
 *
 * Instructions (first byte), integers little-endian:
 *   0 accept   deploymentId 32, account 32, controller 32, nonce u64, expiry u64
 *              accounts: payer (signer, writable), member (signer), record (writable), system program
 *              Makes the record, or renews it under a higher nonce; a renewed record is not revoked.
 *   1 revoke   nonce u64, expiry u64
 *              accounts: member (signer), record (writable)
 *              expiry is until when the aggregator may take notice; what it reads on chain counts at once.
 *
 * Refusals are custom error codes; adapters/solana/programs.py mirrors this table.
 */
#include "sol.h"

enum refusal {
  OK = 0,
  INSTRUCTION_MALFORMED = 1, /* unknown tag or wrong length */
  ACCOUNTS_WRONG = 2,        /* too few or too many accounts, or a record that is not writable */
  PAYER_NOT_SIGNER = 3,      /* the payer must sign and be writable */
  MEMBER_NOT_SIGNER = 4,     /* the member must sign: for a PDA its program does, in a CPI */
  SYSTEM_PROGRAM_WRONG = 5,  /* not the system program */
  ADDRESS_WRONG = 6,         /* not the address its seeds give */
  RECORD_WRONG = 7,          /* not a record of this program */
  SYSVAR_UNREADABLE = 8,     /* clock or rent cannot be used */
  EXPIRED = 9,               /* the expiry has passed */
  NONCE_USED = 10,           /* not above the last nonce of this record */
  REVOKED_ALREADY = 11,      /* accept again first */
};

enum { DEPLOYMENT = 8, MEMBER = 40, ACCOUNT = 72, CONTROLLER = 104, NONCE = 136, EXPIRY = 144, REVOKE_NONCE = 152,
       REVOKE_EXPIRY = 160, REVOKED = 168, BUMP = 169, RECORD_LEN = 176 };

#define DISCRIMINATOR 0x31524b4e494c6d63UL /* "cmLINKR1" */

/* The record's seeds with room for the bump, which is `bump` once known. */
typedef struct { slice at[5]; u8 bump; } path;

INLINE void record_path(path *p, const u8 *deployment, const void *member, const void *account_id) {
  p->at[0] = (slice){"link", 4};
  p->at[1] = (slice){deployment, 32};
  p->at[2] = (slice){member, 32};
  p->at[3] = (slice){account_id, 32};
  p->at[4] = (slice){&p->bump, 1};
}
/* Is `a` this member's record, as far as its owner, form and member go? Its address was checked when it was made, and
 * nobody but this program can write it. */
INLINE int is_record(const account *a, const key32 *program, const key32 *member) {
  return same32(a->owner, program) && a->data_len == RECORD_LEN && get64(a->data) == DISCRIMINATOR &&
         same32(a->data + MEMBER, member);
}
/* Is `nonce` above every one that the record has seen? Only a new record, all zero, takes 0. */
INLINE int is_above(const u8 *record, u64 nonce) {
  return nonce > get64(record + NONCE) && nonce > get64(record + REVOKE_NONCE);
}
static u64 not_expired(u64 expiry) {
  clock_sysvar clock;
  if (sol_get_clock_sysvar(&clock)) return SYSVAR_UNREADABLE;
  return clock.unix_time < expiry ? OK : EXPIRED;
}

static u64 accept(const input *in) {
  if (in->len != 113) return INSTRUCTION_MALFORMED;
  if (in->count != 4) return ACCOUNTS_WRONG;
  account *payer = in->accounts, *member = payer + 1, *record = payer + 2;
  const u8 *deployment = in->data + 1, *account_id = in->data + 33, *controller = in->data + 65;
  u64 nonce = get64(in->data + 97), expiry = get64(in->data + 105), refused;
  if (!payer->signer || !payer->writable) return PAYER_NOT_SIGNER;
  if (!member->signer) return MEMBER_NOT_SIGNER;
  if (!same32(payer[3].key, &SYSTEM_PROGRAM)) return SYSTEM_PROGRAM_WRONG;
  if (!record->writable) return ACCOUNTS_WRONG;
  path p;
  key32 want;
  record_path(&p, deployment, member->key, account_id);
  if (sol_try_find_program_address(p.at, 4, in->program, &want, &p.bump) || !same32(&want, record->key))
    return ADDRESS_WRONG;
  if ((refused = not_expired(expiry))) return refused;
  u8 *r = record->data;
  if (!record->data_len && same32(record->owner, &SYSTEM_PROGRAM)) {
    signer_seeds signer = {p.at, 5};
    if (create_pda(in, record, RECORD_LEN, in->program, &signer)) return SYSVAR_UNREADABLE;
    put64(r, DISCRIMINATOR);
    copy32(r + DEPLOYMENT, deployment);
    copy32(r + MEMBER, member->key);
    copy32(r + ACCOUNT, account_id);
    r[BUMP] = p.bump;
  } else {
    if (!is_record(record, in->program, member->key)) return RECORD_WRONG;
    if (!is_above(r, nonce)) return NONCE_USED;
  }
  copy32(r + CONTROLLER, controller);
  put64(r + NONCE, nonce);
  put64(r + EXPIRY, expiry);
  put64(r + REVOKE_NONCE, 0);
  put64(r + REVOKE_EXPIRY, 0);
  r[REVOKED] = 0;
  return OK;
}

static u64 revoke(const input *in) {
  if (in->len != 17) return INSTRUCTION_MALFORMED;
  if (in->count != 2) return ACCOUNTS_WRONG;
  account *member = in->accounts, *record = member + 1;
  u64 nonce = get64(in->data + 1), expiry = get64(in->data + 9), refused;
  if (!member->signer) return MEMBER_NOT_SIGNER;
  if (!record->writable) return ACCOUNTS_WRONG;
  if (!is_record(record, in->program, member->key)) return RECORD_WRONG;
  u8 *r = record->data;
  if (r[REVOKED]) return REVOKED_ALREADY;
  if (!is_above(r, nonce)) return NONCE_USED;
  if ((refused = not_expired(expiry))) return refused;
  put64(r + REVOKE_NONCE, nonce);
  put64(r + REVOKE_EXPIRY, expiry);
  r[REVOKED] = 1;
  return OK;
}

u64 entrypoint(u8 *region) {
  account accounts[4];
  input in = {accounts, 0, 0, 0, 0};
  if (parse_input(region, &in, 4)) return ACCOUNTS_WRONG;
  if (!in.len) return INSTRUCTION_MALFORMED;
  switch (in.data[0]) {
    case 0: return accept(&in);
    case 1: return revoke(&in);
    default: return INSTRUCTION_MALFORMED;
  }
}
