/* The collateral vault on Solana: SPL tokens held for margin accounts, given back only after a delay.
 *
 * A depositor's own tokens are credited to a 32-byte margin account. Only the depositor can ask for them back; a
 * request waits `delay` seconds, during which the aggregator sees it as pending. Tokens lie in token accounts whose
 * authority is the vault PDA, so that nobody can move them but this program.
 * SPL Token only: a Token-2022 mint may take a fee or have a hook, and is refused here.
 * What stays outside: a mint's freeze authority can freeze custody; then claims fail until it thaws.
 *
 * Accounts (PDAs of this program; little-endian; never closed):
 *   vault    ["vault", deploymentId, delay (LE u64)]   the delay is a seed: nobody can initialise "our" vault with
 *            another delay first
 *            56 bytes: 0 discriminator "cmVAULT1"  8 deploymentId 32  40 delay u64  48 bump u8  49 zero 7
 *   holding  ["holding", vault, account, mint]   what an account holds in base units; total includes pending
 *            128 bytes: 0 "cmHOLDG1"  8 vault 32  40 account 32  72 mint 32  104 total u64  112 pending u64
 *            120 bump u8  121 zero 7
 *   deposit  ["deposit", vault, account, owner, mint]   what one owner put in; amount includes pending
 *            168 bytes: 0 "cmDEPOS1"  8 vault 32  40 account 32  72 owner 32  104 mint 32  136 amount u64
 *            144 pending u64  152 readyAt u64  160 bump u8  161 zero 7
 *            One request may be open at a time: pending is its amount, readyAt the second from which it can be claimed.
 *   custody  ["custody", vault, mint]   a token account of the mint, authority: the vault
 *
 * Instructions (first byte), integers little-endian:
 *   0 init     deploymentId 32, delay u64
 *              accounts: payer (signer, writable), vault (writable), system program
 *   1 deposit  account 32, amount u64
 *              accounts: owner (signer, writable), vault, holding (writable), deposit (writable), mint,
 *              source token account (writable), custody (writable), token program, system program
 *   2 request  account 32, mint 32, amount u64
 *              accounts: owner (signer), vault, holding (writable), deposit (writable)
 *   3 cancel   account 32, mint 32
 *              accounts: as request
 *   4 claim    account 32
 *              accounts: owner (signer), vault, holding (writable), deposit (writable), mint, custody (writable),
 *              destination token account (writable), token program
 *
 * Refusals are custom error codes; adapters/solana/programs.py mirrors this table. A refusal of the token program
 * (frozen account, too little balance, wrong mint) ends the transaction with that program's own code.
 */
#include "sol.h"

enum refusal {
  OK = 0,
  INSTRUCTION_MALFORMED = 1, /* unknown tag or wrong length */
  ACCOUNTS_WRONG = 2,        /* too few or too many accounts */
  OWNER_NOT_SIGNER = 3,      /* the owner (or payer) must sign, and be writable where it pays */
  SYSTEM_PROGRAM_WRONG = 4,  /* not the system program */
  TOKEN_PROGRAM_WRONG = 5,   /* not SPL Token (Token-2022 included) */
  ADDRESS_WRONG = 6,         /* not the address its seeds give */
  ALREADY_INITIALISED = 7,   /* the vault exists */
  VAULT_WRONG = 8,           /* not a vault of this program */
  HOLDING_WRONG = 9,         /* not the holding of this vault, account and mint */
  DEPOSIT_WRONG = 10,        /* not the deposit of this vault, account, owner and mint */
  MINT_WRONG = 11,           /* not an initialised SPL Token mint */
  TOKEN_ACCOUNT_WRONG = 12,  /* not a token account of this mint, or the source is not the owner's */
  DESTINATION_WRONG = 13,    /* tokens cannot be paid out to the vault itself */
  SYSVAR_UNREADABLE = 14,    /* clock or rent cannot be used */
  DELAY_TOO_LONG = 15,       /* above 2^32 seconds */
  AMOUNT_ZERO = 20,          /* nothing asked for, or nothing arrived */
  AMOUNT_TOO_LARGE = 21,     /* the sum passes 2^64 */
  AMOUNT_NOT_FREE = 22,      /* more than the owner put in */
  REQUEST_OPEN = 23,         /* cancel or claim the open request first */
  REQUEST_NONE = 24,         /* no request is open */
  NOT_READY = 25,            /* the delay has not passed */
};

enum { VAULT_DEPLOYMENT = 8, VAULT_DELAY = 40, VAULT_BUMP = 48, VAULT_LEN = 56 };
enum { HOLDING_VAULT = 8, HOLDING_ACCOUNT = 40, HOLDING_MINT = 72, HOLDING_TOTAL = 104, HOLDING_PENDING = 112,
       HOLDING_BUMP = 120, HOLDING_LEN = 128 };
enum { DEPOSIT_VAULT = 8, DEPOSIT_ACCOUNT = 40, DEPOSIT_OWNER = 72, DEPOSIT_MINT = 104, DEPOSIT_AMOUNT = 136,
       DEPOSIT_PENDING = 144, DEPOSIT_READY_AT = 152, DEPOSIT_BUMP = 160, DEPOSIT_LEN = 168 };
/* SPL Token: Mint 82 bytes (decimals at 44, initialised at 45), Account 165 bytes (mint 0, owner 32, amount 64) */
enum { MINT_DECIMALS = 44, MINT_INITIALISED = 45, MINT_LEN = 82, TOKEN_OWNER = 32, TOKEN_AMOUNT = 64, TOKEN_LEN = 165 };

#define VAULT_DISCRIMINATOR 0x31544c5541566d63UL   /* "cmVAULT1" */
#define HOLDING_DISCRIMINATOR 0x3147444c4f486d63UL /* "cmHOLDG1" */
#define DEPOSIT_DISCRIMINATOR 0x31534f5045446d63UL /* "cmDEPOS1" */

/* TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA */
static const key32 TOKEN_PROGRAM = {{6,   221, 246, 225, 215, 101, 161, 147, 217, 203, 225, 70,  206, 235, 121, 172,
                                     28,  180, 133, 237, 95,  91,  55,  145, 58,  140, 245, 133, 126, 255, 0,   169}};

/* A PDA's seeds with room for the bump, which is `bump` once known. */
typedef struct { slice at[6]; u64 count; u8 bump; } path;

INLINE void vault_path(path *p, const u8 *deployment, const u8 *delay) {
  p->at[0] = (slice){"vault", 5};
  p->at[1] = (slice){deployment, 32};
  p->at[2] = (slice){delay, 8};
  p->at[3] = (slice){&p->bump, 1};
  p->count = 3;
}
INLINE void holding_path(path *p, const key32 *vault, const void *account, const void *mint) {
  p->at[0] = (slice){"holding", 7};
  p->at[1] = (slice){vault, 32};
  p->at[2] = (slice){account, 32};
  p->at[3] = (slice){mint, 32};
  p->at[4] = (slice){&p->bump, 1};
  p->count = 4;
}
INLINE void deposit_path(path *p, const key32 *vault, const void *account, const void *owner, const void *mint) {
  p->at[0] = (slice){"deposit", 7};
  p->at[1] = (slice){vault, 32};
  p->at[2] = (slice){account, 32};
  p->at[3] = (slice){owner, 32};
  p->at[4] = (slice){mint, 32};
  p->at[5] = (slice){&p->bump, 1};
  p->count = 5;
}
INLINE void custody_path(path *p, const key32 *vault, const void *mint) {
  p->at[0] = (slice){"custody", 7};
  p->at[1] = (slice){vault, 32};
  p->at[2] = (slice){mint, 32};
  p->at[3] = (slice){&p->bump, 1};
  p->count = 3;
}

/* Is `a` at the address its path gives, with the bump stored in it? */
static u64 at_path(path *p, const account *a, const key32 *program) {
  key32 want;
  return !sol_create_program_address(p->at, p->count + 1, program, &want) && same32(&want, a->key);
}
/* Is `a` at the canonical address of its path? Sets the bump. */
static u64 at_canonical_path(path *p, const account *a, const key32 *program) {
  key32 want;
  return !sol_try_find_program_address(p->at, p->count, program, &want, &p->bump) && same32(&want, a->key);
}

INLINE int is_own(const account *a, const key32 *program, u64 len, u64 discriminator) {
  return same32(a->owner, program) && a->data_len == len && get64(a->data) == discriminator;
}
static u64 is_vault(const account *a, const key32 *program) {
  path p;
  if (!is_own(a, program, VAULT_LEN, VAULT_DISCRIMINATOR)) return 0;
  vault_path(&p, a->data + VAULT_DEPLOYMENT, a->data + VAULT_DELAY);
  p.bump = a->data[VAULT_BUMP];
  return at_path(&p, a, program);
}
static u64 is_holding(const account *a, const key32 *program, const key32 *vault, const void *account_id,
                      const void *mint) {
  path p;
  if (!a->writable || !is_own(a, program, HOLDING_LEN, HOLDING_DISCRIMINATOR)) return 0;
  holding_path(&p, vault, account_id, mint);
  p.bump = a->data[HOLDING_BUMP];
  return at_path(&p, a, program);
}
/* all: owner, vault, holding, deposit, as every instruction but init begins */
static u64 is_deposit(const account *all, const key32 *program, const void *account_id, const void *mint) {
  path p;
  const account *a = all + 3;
  if (!a->writable || !is_own(a, program, DEPOSIT_LEN, DEPOSIT_DISCRIMINATOR)) return 0;
  deposit_path(&p, all[1].key, account_id, all->key, mint);
  p.bump = a->data[DEPOSIT_BUMP];
  return at_path(&p, a, program);
}
INLINE int is_mint(const account *a) {
  return same32(a->owner, &TOKEN_PROGRAM) && a->data_len == MINT_LEN && a->data[MINT_INITIALISED] == 1;
}
INLINE int is_token_account(const account *a, const key32 *mint, const key32 *owner) {
  return same32(a->owner, &TOKEN_PROGRAM) && a->data_len == TOKEN_LEN && same32(a->data, mint) &&
         same32(a->data + TOKEN_OWNER, owner);
}
INLINE int is_fresh(const account *a) { return !a->data_len && same32(a->owner, &SYSTEM_PROGRAM); }

/* TransferChecked of SPL Token, signed by `seeds` when given. A refusal there ends the transaction. */
static void transfer(const input *in, const account *const *who, u64 amount, const signer_seeds *seeds) {
  /* who: from, mint, to, authority */
  u8 data[10];
  data[0] = 12;
  put64(data + 1, amount);
  data[9] = who[1]->data[MINT_DECIMALS];
  meta metas[4] = {{who[0]->key, 1, 0}, {who[1]->key, 0, 0}, {who[2]->key, 1, 0}, {who[3]->key, 0, 1}};
  instruction ix = {&TOKEN_PROGRAM, metas, 4, data, 10};
  sol_invoke_signed_c(&ix, in->accounts, in->count, seeds, seeds ? 1 : 0);
}

static u64 init(const input *in) {
  if (in->len != 41) return INSTRUCTION_MALFORMED;
  if (in->count != 3) return ACCOUNTS_WRONG;
  account *payer = in->accounts, *vault = payer + 1;
  const u8 *deployment = in->data + 1, *delay = in->data + 33;
  if (!payer->signer || !payer->writable) return OWNER_NOT_SIGNER;
  if (!same32(payer[2].key, &SYSTEM_PROGRAM)) return SYSTEM_PROGRAM_WRONG;
  if (get64(delay) >> 32) return DELAY_TOO_LONG;
  path p;
  vault_path(&p, deployment, delay);
  if (!at_canonical_path(&p, vault, in->program)) return ADDRESS_WRONG;
  if (!is_fresh(vault)) return ALREADY_INITIALISED;
  signer_seeds signer = {p.at, p.count + 1};
  if (create_pda(in, vault, VAULT_LEN, in->program, &signer)) return SYSVAR_UNREADABLE;
  put64(vault->data, VAULT_DISCRIMINATOR);
  copy32(vault->data + VAULT_DEPLOYMENT, deployment);
  put64(vault->data + VAULT_DELAY, get64(delay));
  vault->data[VAULT_BUMP] = p.bump;
  return OK;
}

/* The first deposit of a kind makes the account that counts it: the owner pays its rent. */
static u64 open_holding(const input *in, const u8 *account_id) {
  account *owner = in->accounts, *vault = owner + 1, *holding = owner + 2, *mint = owner + 4;
  path p;
  holding_path(&p, vault->key, account_id, mint->key);
  if (!at_canonical_path(&p, holding, in->program)) return ADDRESS_WRONG;
  signer_seeds signer = {p.at, p.count + 1};
  if (create_pda(in, holding, HOLDING_LEN, in->program, &signer)) return SYSVAR_UNREADABLE;
  u8 *h = holding->data;
  put64(h, HOLDING_DISCRIMINATOR);
  copy32(h + HOLDING_VAULT, vault->key);
  copy32(h + HOLDING_ACCOUNT, account_id);
  copy32(h + HOLDING_MINT, mint->key);
  h[HOLDING_BUMP] = p.bump;
  return OK;
}
static u64 open_deposit(const input *in, const u8 *account_id) {
  account *owner = in->accounts, *vault = owner + 1, *record = owner + 3, *mint = owner + 4;
  path p;
  deposit_path(&p, vault->key, account_id, owner->key, mint->key);
  if (!at_canonical_path(&p, record, in->program)) return ADDRESS_WRONG;
  signer_seeds signer = {p.at, p.count + 1};
  if (create_pda(in, record, DEPOSIT_LEN, in->program, &signer)) return SYSVAR_UNREADABLE;
  u8 *r = record->data;
  put64(r, DEPOSIT_DISCRIMINATOR);
  copy32(r + DEPOSIT_VAULT, vault->key);
  copy32(r + DEPOSIT_ACCOUNT, account_id);
  copy32(r + DEPOSIT_OWNER, owner->key);
  copy32(r + DEPOSIT_MINT, mint->key);
  r[DEPOSIT_BUMP] = p.bump;
  return OK;
}
static u64 open_custody(const input *in) {
  account *owner = in->accounts, *vault = owner + 1, *mint = owner + 4, *custody = owner + 6;
  path p;
  custody_path(&p, vault->key, mint->key);
  if (!at_canonical_path(&p, custody, in->program)) return ADDRESS_WRONG;
  signer_seeds signer = {p.at, p.count + 1};
  if (create_pda(in, custody, TOKEN_LEN, &TOKEN_PROGRAM, &signer)) return SYSVAR_UNREADABLE;
  u8 data[33];
  data[0] = 18; /* InitializeAccount3: the authority is in the data */
  copy32(data + 1, vault->key);
  meta metas[2] = {{custody->key, 1, 0}, {mint->key, 0, 0}};
  instruction ix = {&TOKEN_PROGRAM, metas, 2, data, 33};
  sol_invoke_signed_c(&ix, in->accounts, in->count, 0, 0);
  return OK;
}
static u64 is_custody(const account *custody, const account *vault, const account *mint, const key32 *program) {
  path p;
  if (!is_token_account(custody, mint->key, vault->key)) return 0;
  custody_path(&p, vault->key, mint->key);
  return at_canonical_path(&p, custody, program);
}

static u64 deposit(const input *in) {
  if (in->len != 41) return INSTRUCTION_MALFORMED;
  if (in->count != 9) return ACCOUNTS_WRONG;
  const account *owner = in->accounts, *vault = owner + 1, *holding = owner + 2, *record = owner + 3, *mint = owner + 4,
                *source = owner + 5, *custody = owner + 6;
  const u8 *account_id = in->data + 1;
  u64 amount = get64(in->data + 33), refused;
  if (!owner->signer || !owner->writable) return OWNER_NOT_SIGNER;
  if (!same32(owner[7].key, &TOKEN_PROGRAM)) return TOKEN_PROGRAM_WRONG;
  if (!same32(owner[8].key, &SYSTEM_PROGRAM)) return SYSTEM_PROGRAM_WRONG;
  if (!is_vault(vault, in->program)) return VAULT_WRONG;
  if (!is_mint(mint)) return MINT_WRONG;
  if (!is_token_account(source, mint->key, owner->key)) return TOKEN_ACCOUNT_WRONG;
  if (!amount) return AMOUNT_ZERO;

  if (is_fresh(custody)) {
    if ((refused = open_custody(in))) return refused;
  } else if (!is_custody(custody, vault, mint, in->program)) {
    return TOKEN_ACCOUNT_WRONG;
  }
  if (is_fresh(holding)) {
    if ((refused = open_holding(in, account_id))) return refused;
  } else if (!is_holding(holding, in->program, vault->key, account_id, mint->key)) {
    return HOLDING_WRONG;
  }
  if (is_fresh(record)) {
    if ((refused = open_deposit(in, account_id))) return refused;
  } else if (!is_deposit(in->accounts, in->program, account_id, mint->key)) {
    return DEPOSIT_WRONG;
  }

  u64 before = get64(custody->data + TOKEN_AMOUNT);
  const account *who[4] = {source, mint, custody, owner};
  transfer(in, who, amount, 0);
  u64 arrived = get64(custody->data + TOKEN_AMOUNT) - before;
  if (!arrived) return AMOUNT_ZERO;
  u64 total = get64(holding->data + HOLDING_TOTAL), mine = get64(record->data + DEPOSIT_AMOUNT);
  if (total + arrived < total) return AMOUNT_TOO_LARGE; /* mine <= total */
  put64(holding->data + HOLDING_TOTAL, total + arrived);
  put64(record->data + DEPOSIT_AMOUNT, mine + arrived);
  return OK;
}

/* What request, cancel and claim ask of their first four accounts. */
static u64 check_owner(const input *in, const u8 *account_id, const void *mint) {
  const account *owner = in->accounts;
  if (!owner->signer) return OWNER_NOT_SIGNER;
  if (!is_vault(owner + 1, in->program)) return VAULT_WRONG;
  if (!is_holding(owner + 2, in->program, owner[1].key, account_id, mint)) return HOLDING_WRONG;
  if (!is_deposit(owner, in->program, account_id, mint)) return DEPOSIT_WRONG;
  return OK;
}

static u64 request(const input *in) {
  if (in->len != 73) return INSTRUCTION_MALFORMED;
  if (in->count != 4) return ACCOUNTS_WRONG;
  u64 refused = check_owner(in, in->data + 1, in->data + 33), amount = get64(in->data + 65);
  if (refused) return refused;
  u8 *holding = in->accounts[2].data, *record = in->accounts[3].data;
  if (!amount) return AMOUNT_ZERO;
  if (get64(record + DEPOSIT_PENDING)) return REQUEST_OPEN;
  if (amount > get64(record + DEPOSIT_AMOUNT)) return AMOUNT_NOT_FREE;
  clock_sysvar clock;
  if (sol_get_clock_sysvar(&clock)) return SYSVAR_UNREADABLE;
  put64(record + DEPOSIT_PENDING, amount);
  put64(record + DEPOSIT_READY_AT, clock.unix_time + get64(in->accounts[1].data + VAULT_DELAY));
  put64(holding + HOLDING_PENDING, get64(holding + HOLDING_PENDING) + amount);
  return OK;
}

static u64 cancel(const input *in) {
  if (in->len != 65) return INSTRUCTION_MALFORMED;
  if (in->count != 4) return ACCOUNTS_WRONG;
  u64 refused = check_owner(in, in->data + 1, in->data + 33);
  if (refused) return refused;
  u8 *holding = in->accounts[2].data, *record = in->accounts[3].data;
  u64 pending = get64(record + DEPOSIT_PENDING);
  if (!pending) return REQUEST_NONE;
  put64(record + DEPOSIT_PENDING, 0);
  put64(record + DEPOSIT_READY_AT, 0);
  put64(holding + HOLDING_PENDING, get64(holding + HOLDING_PENDING) - pending);
  return OK;
}

static u64 claim(const input *in) {
  if (in->len != 33) return INSTRUCTION_MALFORMED;
  if (in->count != 8) return ACCOUNTS_WRONG;
  const account *owner = in->accounts, *vault = owner + 1, *mint = owner + 4, *custody = owner + 5, *to = owner + 6;
  u64 refused = check_owner(in, in->data + 1, mint->key);
  if (refused) return refused;
  if (!same32(owner[7].key, &TOKEN_PROGRAM)) return TOKEN_PROGRAM_WRONG;
  if (!is_mint(mint)) return MINT_WRONG;
  if (!is_custody(custody, vault, mint, in->program)) return TOKEN_ACCOUNT_WRONG;
  if (same32(to->key, custody->key)) return DESTINATION_WRONG; /* the claim would vanish into the pool */
  u8 *holding = owner[2].data, *record = owner[3].data;
  u64 pending = get64(record + DEPOSIT_PENDING);
  if (!pending) return REQUEST_NONE;
  clock_sysvar clock;
  if (sol_get_clock_sysvar(&clock)) return SYSVAR_UNREADABLE;
  if (clock.unix_time < get64(record + DEPOSIT_READY_AT)) return NOT_READY;

  put64(record + DEPOSIT_AMOUNT, get64(record + DEPOSIT_AMOUNT) - pending);
  put64(record + DEPOSIT_PENDING, 0);
  put64(record + DEPOSIT_READY_AT, 0);
  put64(holding + HOLDING_TOTAL, get64(holding + HOLDING_TOTAL) - pending);
  put64(holding + HOLDING_PENDING, get64(holding + HOLDING_PENDING) - pending);
  path p;
  vault_path(&p, vault->data + VAULT_DEPLOYMENT, vault->data + VAULT_DELAY);
  p.bump = vault->data[VAULT_BUMP];
  signer_seeds signer = {p.at, p.count + 1};
  const account *who[4] = {custody, mint, to, vault};
  transfer(in, who, pending, &signer);
  return OK;
}

u64 entrypoint(u8 *region) {
  account accounts[9];
  input in = {accounts, 0, 0, 0, 0};
  if (parse_input(region, &in, 9)) return ACCOUNTS_WRONG;
  if (!in.len) return INSTRUCTION_MALFORMED;
  switch (in.data[0]) {
    case 0: return init(&in);
    case 1: return deposit(&in);
    case 2: return request(&in);
    case 3: return cancel(&in);
    case 4: return claim(&in);
    default: return INSTRUCTION_MALFORMED;
  }
}
