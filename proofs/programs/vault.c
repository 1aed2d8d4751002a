/* The collateral vault on Solana: SPL tokens held for margin accounts, given back only after a delay.
 *
 * A depositor's own tokens are credited to a 32-byte margin account. Only the depositor can ask for them back; a
 * request waits `delay` seconds, during which the aggregator sees it as pending. A quorum of the registry's attestors
 * can hold an account's claims back for up to seven days at a time, and can permit an amount to leave at once.
 * Tokens lie in token accounts whose authority is the vault PDA, so that nobody can move them but this program.
 *
 * Mints of SPL Token, and of Token-2022 where no extension can take, move, block or rename tokens behind the vault's
 * back. Accepted extensions: metadata pointer, token metadata, group pointer, token group, group member pointer, token
 * group member; all of them only describe. Refused, each with a code of its own (100 + extension type): see below.
 * Interest-bearing and scaled-UI mints move no token, but the market quotes the displayed amount, which their authority
 * changes at will, while every count here is of base units. An extension this program does not know is refused too.
 * The list is asked at every deposit and never on the way out. None of the accepted ones asks for space in a token
 * account, so custody is 165 bytes under either program.
 * What stays outside: a mint's freeze authority can freeze custody; then nothing leaves until it thaws.
 *
 * Accounts (PDAs of this program; little-endian; never closed; all sizes differ, so that one filter finds each kind):
 *   vault    ["vault", registry, delay (LE u64)]   the registry account's key pins its program and its deployment, and
 *            the delay is a seed: nobody can initialise "our" vault with another delay or another registry
 *            56 bytes: 0 discriminator "cmVAULT2"  8 registry 32  40 delay u64  48 bump u8  49 zero 7
 *   holding  ["holding", vault, account, mint]   what an account holds in base units; total includes pending
 *            128 bytes: 0 "cmHOLDG1"  8 vault 32  40 account 32  72 mint 32  104 total u64  112 pending u64
 *            120 bump u8  121 zero 7
 *   deposit  ["deposit", vault, account, owner, mint]   what one owner put in; amount includes pending
 *            168 bytes: 0 "cmDEPOS1"  8 vault 32  40 account 32  72 owner 32  104 mint 32  136 amount u64
 *            144 pending u64  152 readyAt u64  160 bump u8  161 zero 7
 *            One request may be open at a time: pending is its amount, readyAt the second from which it can be claimed.
 *   limit    ["limit", vault, mint]   the most base units of a mint that custody may hold after a deposit
 *            88 bytes: 0 "cmLIMIT1"  8 vault 32  40 mint 32  72 cap u64  80 bump u8  81 zero 7
 *   hold     ["hold", vault, account]   made by the account's first deposit; until 0, epoch 0: never held
 *            96 bytes: 0 "cmHOLDS1"  8 vault 32  40 account 32  72 until u64  80 epoch u64  88 bump u8  89 zero 7
 *   nonce    ["nonce", vault, nonce]   a permit that was used; it exists or it does not
 *            80 bytes: 0 "cmNONCE1"  8 vault 32  40 nonce 32  72 bump u8  73 zero 7
 *   custody  ["custody", vault, mint]   a token account of the mint, authority: the vault
 *
 * Instructions (first byte), integers little-endian. Account and mint come from the holding, which its address binds.
 *   0 init     delay u64
 *              accounts: payer (signer, writable), vault (writable), registry, system program
 *   1 deposit  account 32, amount u64
 *              accounts: owner (signer, writable), vault, holding (writable), deposit (writable), mint,
 *              source token account (writable), custody (writable), limit, hold (writable), token program,
 *              system program
 *   2 request  amount u64
 *              accounts: owner (signer), vault, holding (writable), deposit (writable)
 *   3 cancel   nothing
 *              accounts: as request
 *   4 claim    nothing
 *              accounts: owner (signer), vault, holding (writable), deposit (writable), mint, custody (writable),
 *              destination token account (writable), hold, token program
 *   5 limit    mint 32, cap u64 (0: no more deposits)
 *              accounts: payer (signer, writable), governance of the registry (signer), vault, registry,
 *              limit (writable), system program
 *   6 hold     until u64, epoch u64, n u8, n x (index u8, r 32, vs 32)
 *              accounts: vault, registry, hold (writable)
 *              A newer hold can prolong the one that stands and make older permits void; it never shortens it.
 *   7 withdraw amount u64, nonce 32, epoch u64, expiry u64, n u8, n x (index u8, r 32, vs 32)
 *              accounts: as claim (the owner writable too), then registry, nonce (writable), system program
 *              The amount comes out of what is free, then out of the open request.
 *              One packet carries 9 signatures; with the accounts in an address lookup table it carries 13.
 *
 * Refusals are custom error codes; adapters/solana/programs.py mirrors this table; 30 to 39 are quorum.h's. A refusal
 * of the token program (frozen account, too little balance, wrong mint) ends the transaction with that program's code.
 */
#include "quorum.h"

enum refusal {
  OK = 0,
  INSTRUCTION_MALFORMED = 1, /* unknown tag or wrong length */
  ACCOUNTS_WRONG = 2,        /* too few or too many accounts */
  OWNER_NOT_SIGNER = 3,      /* the owner (or payer) must sign, and be writable where it pays */
  SYSTEM_PROGRAM_WRONG = 4,  /* not the system program */
  TOKEN_PROGRAM_WRONG = 5,   /* not the token program that owns the mint */
  ADDRESS_WRONG = 6,         /* not the address its seeds give */
  ALREADY_INITIALISED = 7,   /* the vault exists */
  VAULT_WRONG = 8,           /* not a vault of this program */
  HOLDING_WRONG = 9,         /* not a holding of this vault, or of another account or mint than named */
  DEPOSIT_WRONG = 10,        /* not the deposit of this vault, account, owner and mint */
  MINT_WRONG = 11,           /* not an initialised mint of either token program, or not the holding's */
  TOKEN_ACCOUNT_WRONG = 12,  /* not a token account of this mint, or the source is not the owner's */
  DESTINATION_WRONG = 13,    /* tokens cannot be paid out to the vault itself */
  SYSVAR_UNREADABLE = 14,    /* clock or rent cannot be used */
  DELAY_TOO_LONG = 15,       /* above 2^32 seconds */
  REGISTRY_WRONG = 16,       /* not this vault's registry, or not initialised */
  GOVERNANCE_WRONG = 17,     /* not the registry's governance, or it did not sign */
  LIMIT_WRONG = 18,          /* not the limit of this vault and mint */
  HOLD_WRONG = 19,           /* not the hold of this vault and account; there is none before the first deposit */
  AMOUNT_ZERO = 20,          /* nothing asked for, or nothing arrived */
  AMOUNT_TOO_LARGE = 21,     /* the sum passes 2^64 */
  AMOUNT_NOT_FREE = 22,      /* more than the owner put in */
  REQUEST_OPEN = 23,         /* cancel or claim the open request first */
  REQUEST_NONE = 24,         /* no request is open */
  NOT_READY = 25,            /* the delay has not passed */
  MINT_NOT_ACCEPTED = 26,    /* governance set no limit for the mint, or 0 */
  LIMIT_REACHED = 27,        /* custody would hold more than the limit */
  HELD = 28,                 /* a quorum holds the account, and no newer one permits this */
  HOLD_TOO_LONG = 40,        /* until is more than seven days ahead */
  HOLD_NOT_NEWER = 41,       /* the standing hold's epoch is not below this one */
  PERMIT_EXPIRED = 42,       /* its expiry has passed */
  NONCE_USED = 43,           /* this permit was used */
  HOLD_PASSED = 44,          /* until is not ahead */
  EXTENSION_TRANSFER_FEE = 101,         /* a part of every transfer goes elsewhere */
  EXTENSION_MINT_CLOSE_AUTHORITY = 103, /* the mint can vanish and come back as another one */
  EXTENSION_CONFIDENTIAL = 104,         /* balances that nobody can read */
  EXTENSION_DEFAULT_STATE = 106,        /* token accounts may begin frozen */
  EXTENSION_NON_TRANSFERABLE = 109,     /* nothing could ever leave */
  EXTENSION_INTEREST_BEARING = 110,     /* an authority changes what a base unit is displayed as */
  EXTENSION_PERMANENT_DELEGATE = 112,   /* somebody else can move or burn custody */
  EXTENSION_TRANSFER_HOOK = 114,        /* a foreign program can block every transfer */
  EXTENSION_CONFIDENTIAL_FEE = 116,     /* a part of confidential transfers goes elsewhere */
  EXTENSION_CONFIDENTIAL_SUPPLY = 124,  /* a supply that nobody can read */
  EXTENSION_SCALED_UI = 125,            /* an authority changes what a base unit is displayed as */
  EXTENSION_PAUSABLE = 126,             /* an authority can stop every transfer */
  EXTENSION_PERMISSIONED_BURN = 128,    /* redeeming needs an authority's consent */
  EXTENSION_UNKNOWN = 199,              /* not known here */
};

enum { VAULT_REGISTRY = 8, VAULT_DELAY = 40, VAULT_BUMP = 48, VAULT_LEN = 56 };
enum { HOLDING_VAULT = 8, HOLDING_ACCOUNT = 40, HOLDING_MINT = 72, HOLDING_TOTAL = 104, HOLDING_PENDING = 112,
       HOLDING_BUMP = 120, HOLDING_LEN = 128 };
enum { DEPOSIT_VAULT = 8, DEPOSIT_ACCOUNT = 40, DEPOSIT_OWNER = 72, DEPOSIT_MINT = 104, DEPOSIT_AMOUNT = 136,
       DEPOSIT_PENDING = 144, DEPOSIT_READY_AT = 152, DEPOSIT_BUMP = 160, DEPOSIT_LEN = 168 };
enum { LIMIT_VAULT = 8, LIMIT_MINT = 40, LIMIT_CAP = 72, LIMIT_BUMP = 80, LIMIT_LEN = 88 };
enum { HOLD_VAULT = 8, HOLD_ACCOUNT = 40, HOLD_UNTIL = 72, HOLD_EPOCH = 80, HOLD_BUMP = 88, HOLD_LEN = 96 };
enum { NONCE_VAULT = 8, NONCE_NONCE = 40, NONCE_BUMP = 72, NONCE_LEN = 80 };
/* SPL Token: Mint 82 bytes (decimals at 44, initialised at 45), Account 165 bytes (mint 0, owner 32, amount 64).
 * Token-2022: the same; where there are extensions, byte 165 says which of both, and from 166 follow u16 type,
 * u16 length, value. It never makes one as long as its Multisig, which has no such byte. */
enum { MINT_DECIMALS = 44, MINT_INITIALISED = 45, MINT_LEN = 82, TOKEN_OWNER = 32, TOKEN_AMOUNT = 64, TOKEN_LEN = 165,
       KIND_AT = 165, KIND_MINT = 1, KIND_TOKEN = 2, EXTENSIONS = 166, MULTISIG_LEN = 355 };
enum { MAX_HOLD = 7 * 86400 };

#define VAULT_DISCRIMINATOR 0x32544c5541566d63UL   /* "cmVAULT2" */
#define HOLDING_DISCRIMINATOR 0x3147444c4f486d63UL /* "cmHOLDG1" */
#define DEPOSIT_DISCRIMINATOR 0x31534f5045446d63UL /* "cmDEPOS1" */
#define LIMIT_DISCRIMINATOR 0x3154494d494c6d63UL   /* "cmLIMIT1" */
#define HOLD_DISCRIMINATOR 0x3153444c4f486d63UL    /* "cmHOLDS1" */
#define NONCE_DISCRIMINATOR 0x3145434e4f4e6d63UL   /* "cmNONCE1" */

/* TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA */
static const key32 TOKEN_PROGRAM = {{6,   221, 246, 225, 215, 101, 161, 147, 217, 203, 225, 70,  206, 235, 121, 172,
                                     28,  180, 133, 237, 95,  91,  55,  145, 58,  140, 245, 133, 126, 255, 0,   169}};
/* TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb */
static const key32 TOKEN_2022_PROGRAM = {{6, 221, 246, 225, 238, 117, 143, 222, 24, 66, 93, 188, 228, 108, 205, 218,
                                         182, 26, 252, 77, 131, 185, 13, 39, 254, 189, 249, 40, 216, 161, 139, 252}};

/* ---- addresses ---- */

INLINE pda vault_path(const void *registry, const void *delay) {
  return (pda){{{"vault", 5}, {registry, 32}, {delay, 8}}, 3, 0};
}
INLINE pda holding_path(const void *vault, const void *account_id, const void *mint) {
  return (pda){{{"holding", 7}, {vault, 32}, {account_id, 32}, {mint, 32}}, 4, 0};
}
INLINE pda deposit_path(const void *vault, const void *account_id, const void *owner, const void *mint) {
  return (pda){{{"deposit", 7}, {vault, 32}, {account_id, 32}, {owner, 32}, {mint, 32}}, 5, 0};
}
INLINE pda limit_path(const void *vault, const void *mint) {
  return (pda){{{"limit", 5}, {vault, 32}, {mint, 32}}, 3, 0};
}
INLINE pda hold_path(const void *vault, const void *account_id) {
  return (pda){{{"hold", 4}, {vault, 32}, {account_id, 32}}, 3, 0};
}
INLINE pda nonce_path(const void *vault, const void *nonce) {
  return (pda){{{"nonce", 5}, {vault, 32}, {nonce, 32}}, 3, 0};
}
INLINE pda custody_path(const void *vault, const void *mint) {
  return (pda){{{"custody", 7}, {vault, 32}, {mint, 32}}, 3, 0};
}

/* Make the account of this path, paid by the first account of the instruction. */
static u64 open(const input *in, account *a, pda *p, u64 len, const key32 *owner) {
  if (!is_at_canonical(p, a, in->program)) return ADDRESS_WRONG;
  signer_seeds signer = {p->seeds, p->count + 1};
  return create_pda(in, a, len, owner, &signer) ? SYSVAR_UNREADABLE : OK;
}

/* ---- what an account is ---- */

static u64 is_vault(const account *a, const key32 *program) {
  if (!is_state_of(a, program, VAULT_LEN, VAULT_DISCRIMINATOR)) return 0;
  pda p = vault_path(a->data + VAULT_REGISTRY, a->data + VAULT_DELAY);
  return is_at(&p, a->data[VAULT_BUMP], a, program);
}
INLINE int is_registry_of(const account *a, const account *vault) {
  return same32(a->key, vault->data + VAULT_REGISTRY) && is_registry_data(a->data, a->data_len);
}
static u64 is_holding(const account *a, const account *vault, const key32 *program) {
  if (!a->writable || !is_state_of(a, program, HOLDING_LEN, HOLDING_DISCRIMINATOR)) return 0;
  pda p = holding_path(vault->key, a->data + HOLDING_ACCOUNT, a->data + HOLDING_MINT);
  return is_at(&p, a->data[HOLDING_BUMP], a, program);
}
/* What `owner` put into this holding. */
static u64 is_deposit(const account *a, const account *vault, const account *owner, const account *holding,
                      const key32 *program) {
  if (!a->writable || !is_state_of(a, program, DEPOSIT_LEN, DEPOSIT_DISCRIMINATOR)) return 0;
  pda p = deposit_path(vault->key, holding->data + HOLDING_ACCOUNT, owner->key, holding->data + HOLDING_MINT);
  return is_at(&p, a->data[DEPOSIT_BUMP], a, program);
}
static u64 is_limit(const account *a, const account *vault, const void *mint, const key32 *program) {
  if (!is_state_of(a, program, LIMIT_LEN, LIMIT_DISCRIMINATOR)) return 0;
  pda p = limit_path(vault->key, mint);
  return is_at(&p, a->data[LIMIT_BUMP], a, program);
}
/* The hold of the account in it; whose that is, the caller compares. */
static u64 is_hold(const account *a, const account *vault, const key32 *program) {
  if (!is_state_of(a, program, HOLD_LEN, HOLD_DISCRIMINATOR)) return 0;
  pda p = hold_path(vault->key, a->data + HOLD_ACCOUNT);
  return is_at(&p, a->data[HOLD_BUMP], a, program);
}

/* Is `a` of this base length, or longer by extensions and marked as this kind, and owned by `program`? */
INLINE int is_of_kind(const account *a, const key32 *program, u64 len, u8 kind) {
  if (!same32(a->owner, program)) return 0;
  return a->data_len == len || (a->data_len > KIND_AT && a->data_len != MULTISIG_LEN && a->data[KIND_AT] == kind &&
                                same32(program, &TOKEN_2022_PROGRAM));
}
INLINE int is_mint(const account *a) {
  if (!same32(a->owner, &TOKEN_PROGRAM) && !same32(a->owner, &TOKEN_2022_PROGRAM)) return 0;
  return is_of_kind(a, a->owner, MINT_LEN, KIND_MINT) && a->data[MINT_INITIALISED] == 1;
}
INLINE int is_token_account(const account *a, const account *mint, const key32 *owner) {
  return is_of_kind(a, mint->owner, TOKEN_LEN, KIND_TOKEN) && same32(a->data, mint->key) &&
         same32(a->data + TOKEN_OWNER, owner);
}
static u64 is_custody(const account *a, const account *vault, const account *mint, const key32 *program) {
  if (!is_token_account(a, mint, vault->key)) return 0;
  pda p = custody_path(vault->key, mint->key);
  return is_at_canonical(&p, a, program);
}

/* Refuse a mint with an extension that could take, move, block or rename what lies in custody. */
static u64 check_extensions(const account *mint) {
  const u64 described = 0x3fUL << 18; /* 18 to 23: metadata and group, pointers and values */
  const u64 named = 1UL << 1 | 1UL << 3 | 1UL << 4 | 1UL << 6 | 1UL << 9 | 1UL << 10 | 1UL << 12 | 1UL << 14 |
                    1UL << 16 | 1UL << 24 | 1UL << 25 | 1UL << 26 | 1UL << 28;
  u64 at = EXTENSIONS;
  while (at + 2 <= mint->data_len) {
    u64 type = *(const u16 *)(mint->data + at);
    if (!type) return OK; /* from here on padding */
    u64 bit = type < 64 ? 1UL << type : 0;
    if (bit & named) return 100 + type;
    if (!(bit & described)) return EXTENSION_UNKNOWN;
    if (at + 4 > mint->data_len) return MINT_WRONG;
    at += 4 + *(const u16 *)(mint->data + at + 2);
    if (at > mint->data_len) return MINT_WRONG;
  }
  return OK;
}

/* TransferChecked, the same in both token programs, signed by `seeds` when given. A refusal there ends all. */
static void transfer(const input *in, const account *const *who, u64 amount, const signer_seeds *seeds) {
  /* who: from, mint, to, authority */
  u8 data[10];
  data[0] = 12;
  put64(data + 1, amount);
  data[9] = who[1]->data[MINT_DECIMALS];
  meta metas[4] = {{who[0]->key, 1, 0}, {who[1]->key, 0, 0}, {who[2]->key, 1, 0}, {who[3]->key, 0, 1}};
  instruction ix = {who[1]->owner, metas, 4, data, 10};
  sol_invoke_signed_c(&ix, in->accounts, in->count, seeds, seeds ? 1 : 0);
}

/* verify_quorum for signatures that begin with their number. A function takes at most five arguments here. */
static u64 check_quorum(const account *registry, const u8 *digest, u64 epoch, u64 now, const u8 *counted) {
  return verify_quorum(registry->data, digest, epoch, now, counted[0], counted + 1);
}

/* ---- instructions ---- */

static u64 init(const input *in) {
  if (in->len != 9) return INSTRUCTION_MALFORMED;
  if (in->count != 4) return ACCOUNTS_WRONG;
  account *payer = in->accounts, *vault = payer + 1;
  const account *registry = payer + 2;
  const u8 *delay = in->data + 1;
  if (!payer->signer || !payer->writable) return OWNER_NOT_SIGNER;
  if (!same32(payer[3].key, &SYSTEM_PROGRAM)) return SYSTEM_PROGRAM_WRONG;
  if (get64(delay) >> 32) return DELAY_TOO_LONG;
  if (!is_registry_data(registry->data, registry->data_len)) return REGISTRY_WRONG;
  pda p = vault_path(registry->key, delay);
  if (!is_at_canonical(&p, vault, in->program)) return ADDRESS_WRONG;
  if (!is_untouched(vault)) return ALREADY_INITIALISED;
  u64 refused = open(in, vault, &p, VAULT_LEN, in->program);
  if (refused) return refused;
  put64(vault->data, VAULT_DISCRIMINATOR);
  copy32(vault->data + VAULT_REGISTRY, registry->key);
  put64(vault->data + VAULT_DELAY, get64(delay));
  vault->data[VAULT_BUMP] = p.bump;
  return OK;
}

/* The first deposit of a kind makes the account that counts it: the owner pays its rent. */
static u64 open_holding(const input *in, account *holding, const account *vault, const u8 *account_id,
                        const account *mint) {
  pda p = holding_path(vault->key, account_id, mint->key);
  u64 refused = open(in, holding, &p, HOLDING_LEN, in->program);
  if (refused) return refused;
  u8 *h = holding->data;
  put64(h, HOLDING_DISCRIMINATOR);
  copy32(h + HOLDING_VAULT, vault->key);
  copy32(h + HOLDING_ACCOUNT, account_id);
  copy32(h + HOLDING_MINT, mint->key);
  h[HOLDING_BUMP] = p.bump;
  return OK;
}
static u64 open_deposit(const input *in, account *record, const account *vault, const u8 *account_id,
                        const account *mint) {
  const account *owner = in->accounts;
  pda p = deposit_path(vault->key, account_id, owner->key, mint->key);
  u64 refused = open(in, record, &p, DEPOSIT_LEN, in->program);
  if (refused) return refused;
  u8 *r = record->data;
  put64(r, DEPOSIT_DISCRIMINATOR);
  copy32(r + DEPOSIT_VAULT, vault->key);
  copy32(r + DEPOSIT_ACCOUNT, account_id);
  copy32(r + DEPOSIT_OWNER, owner->key);
  copy32(r + DEPOSIT_MINT, mint->key);
  r[DEPOSIT_BUMP] = p.bump;
  return OK;
}
static u64 open_hold(const input *in, account *hold, const account *vault, const u8 *account_id) {
  pda p = hold_path(vault->key, account_id);
  u64 refused = open(in, hold, &p, HOLD_LEN, in->program);
  if (refused) return refused;
  put64(hold->data, HOLD_DISCRIMINATOR);
  copy32(hold->data + HOLD_VAULT, vault->key);
  copy32(hold->data + HOLD_ACCOUNT, account_id);
  hold->data[HOLD_BUMP] = p.bump;
  return OK;
}
static u64 open_custody(const input *in, account *custody, const account *vault, const account *mint) {
  pda p = custody_path(vault->key, mint->key);
  u64 refused = open(in, custody, &p, TOKEN_LEN, mint->owner);
  if (refused) return refused;
  u8 data[33];
  data[0] = 18; /* InitializeAccount3: the authority is in the data */
  copy32(data + 1, vault->key);
  meta metas[2] = {{custody->key, 1, 0}, {mint->key, 0, 0}};
  instruction ix = {mint->owner, metas, 2, data, 33};
  sol_invoke_signed_c(&ix, in->accounts, in->count, 0, 0);
  return OK;
}

static u64 deposit(const input *in) {
  if (in->len != 41) return INSTRUCTION_MALFORMED;
  if (in->count != 11) return ACCOUNTS_WRONG;
  account *owner = in->accounts, *vault = owner + 1, *holding = owner + 2, *record = owner + 3, *mint = owner + 4,
          *source = owner + 5, *custody = owner + 6, *limit = owner + 7, *hold = owner + 8;
  const u8 *account_id = in->data + 1;
  u64 amount = get64(in->data + 33), refused;
  if (!owner->signer || !owner->writable) return OWNER_NOT_SIGNER;
  if (!same32(owner[10].key, &SYSTEM_PROGRAM)) return SYSTEM_PROGRAM_WRONG;
  if (!is_vault(vault, in->program)) return VAULT_WRONG;
  if (!is_mint(mint)) return MINT_WRONG;
  if (!same32(owner[9].key, mint->owner)) return TOKEN_PROGRAM_WRONG;
  if ((refused = check_extensions(mint))) return refused;
  if (!is_token_account(source, mint, owner->key)) return TOKEN_ACCOUNT_WRONG;
  if (is_untouched(limit)) return MINT_NOT_ACCEPTED;
  if (!is_limit(limit, vault, mint->key, in->program)) return LIMIT_WRONG;
  u64 cap = get64(limit->data + LIMIT_CAP);
  if (!cap) return MINT_NOT_ACCEPTED;

  if (is_untouched(custody)) {
    if ((refused = open_custody(in, custody, vault, mint))) return refused;
  } else if (!is_custody(custody, vault, mint, in->program)) {
    return TOKEN_ACCOUNT_WRONG;
  }
  if (is_untouched(holding)) {
    if ((refused = open_holding(in, holding, vault, account_id, mint))) return refused;
  } else if (!is_holding(holding, vault, in->program) || !same32(holding->data + HOLDING_ACCOUNT, account_id) ||
             !same32(holding->data + HOLDING_MINT, mint->key)) {
    return HOLDING_WRONG;
  }
  if (is_untouched(record)) {
    if ((refused = open_deposit(in, record, vault, account_id, mint))) return refused;
  } else if (!is_deposit(record, vault, owner, holding, in->program)) {
    return DEPOSIT_WRONG;
  }
  if (is_untouched(hold)) {
    if ((refused = open_hold(in, hold, vault, account_id))) return refused;
  } else if (!is_hold(hold, vault, in->program) || !same32(hold->data + HOLD_ACCOUNT, account_id)) {
    return HOLD_WRONG;
  }

  u64 before = get64(custody->data + TOKEN_AMOUNT);
  const account *who[4] = {source, mint, custody, owner};
  transfer(in, who, amount, 0);
  u64 after = get64(custody->data + TOKEN_AMOUNT), arrived = after - before;
  if (!arrived) return AMOUNT_ZERO;
  if (after > cap) return LIMIT_REACHED;
  u64 total = get64(holding->data + HOLDING_TOTAL), mine = get64(record->data + DEPOSIT_AMOUNT);
  if (total + arrived < total) return AMOUNT_TOO_LARGE; /* mine <= total */
  put64(holding->data + HOLDING_TOTAL, total + arrived);
  put64(record->data + DEPOSIT_AMOUNT, mine + arrived);
  return OK;
}

/* What request, cancel, claim and withdraw ask of their first four accounts. */
static u64 check_owner(const input *in) {
  const account *owner = in->accounts, *vault = owner + 1, *holding = owner + 2;
  if (!owner->signer) return OWNER_NOT_SIGNER;
  if (!is_vault(vault, in->program)) return VAULT_WRONG;
  if (!is_holding(holding, vault, in->program)) return HOLDING_WRONG;
  return is_deposit(owner + 3, vault, owner, holding, in->program) ? OK : DEPOSIT_WRONG;
}

/* Take `amount` of an open request back out of pending. */
INLINE void reduce_pending(u8 *holding, u8 *record, u64 amount) {
  u64 left = get64(record + DEPOSIT_PENDING) - amount;
  put64(record + DEPOSIT_PENDING, left);
  if (!left) put64(record + DEPOSIT_READY_AT, 0);
  put64(holding + HOLDING_PENDING, get64(holding + HOLDING_PENDING) - amount);
}

static u64 request(const input *in) {
  if (in->len != 9) return INSTRUCTION_MALFORMED;
  if (in->count != 4) return ACCOUNTS_WRONG;
  u64 refused = check_owner(in), amount = get64(in->data + 1);
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
  if (in->len != 1) return INSTRUCTION_MALFORMED;
  if (in->count != 4) return ACCOUNTS_WRONG;
  u64 refused = check_owner(in);
  if (refused) return refused;
  u64 pending = get64(in->accounts[3].data + DEPOSIT_PENDING);
  if (!pending) return REQUEST_NONE;
  reduce_pending(in->accounts[2].data, in->accounts[3].data, pending);
  return OK;
}

/* What claim and withdraw ask of their first nine accounts. */
static u64 check_payout(const input *in) {
  const account *owner = in->accounts, *vault = owner + 1, *holding = owner + 2, *mint = owner + 4,
                *custody = owner + 5, *to = owner + 6, *hold = owner + 7;
  u64 refused = check_owner(in);
  if (refused) return refused;
  if (!same32(mint->key, holding->data + HOLDING_MINT) || !is_mint(mint)) return MINT_WRONG;
  if (!same32(owner[8].key, mint->owner)) return TOKEN_PROGRAM_WRONG;
  if (!is_custody(custody, vault, mint, in->program)) return TOKEN_ACCOUNT_WRONG;
  if (same32(to->key, custody->key)) return DESTINATION_WRONG; /* the payment would vanish into the pool */
  if (!is_hold(hold, vault, in->program) || !same32(hold->data + HOLD_ACCOUNT, holding->data + HOLDING_ACCOUNT))
    return HOLD_WRONG;
  return OK;
}
/* Pay `amount` out to the destination and take it off the books; pending is the caller's. */
static void pay_out(const input *in, u64 amount) {
  const account *owner = in->accounts, *vault = owner + 1;
  u8 *holding = owner[2].data, *record = owner[3].data;
  put64(record + DEPOSIT_AMOUNT, get64(record + DEPOSIT_AMOUNT) - amount);
  put64(holding + HOLDING_TOTAL, get64(holding + HOLDING_TOTAL) - amount);
  pda p = vault_path(vault->data + VAULT_REGISTRY, vault->data + VAULT_DELAY);
  p.bump = vault->data[VAULT_BUMP];
  p.seeds[p.count] = (slice){&p.bump, 1};
  signer_seeds signer = {p.seeds, p.count + 1};
  const account *who[4] = {owner + 5, owner + 4, owner + 6, vault};
  transfer(in, who, amount, &signer);
}

static u64 claim(const input *in) {
  if (in->len != 1) return INSTRUCTION_MALFORMED;
  if (in->count != 9) return ACCOUNTS_WRONG;
  u64 refused = check_payout(in);
  if (refused) return refused;
  const account *owner = in->accounts;
  u64 pending = get64(owner[3].data + DEPOSIT_PENDING);
  if (!pending) return REQUEST_NONE;
  clock_sysvar clock;
  if (sol_get_clock_sysvar(&clock)) return SYSVAR_UNREADABLE;
  if (clock.unix_time < get64(owner[3].data + DEPOSIT_READY_AT)) return NOT_READY;
  if (clock.unix_time < get64(owner[7].data + HOLD_UNTIL)) return HELD;
  reduce_pending(owner[2].data, owner[3].data, pending);
  pay_out(in, pending);
  return OK;
}

static u64 limit(const input *in) {
  if (in->len != 41) return INSTRUCTION_MALFORMED;
  if (in->count != 6) return ACCOUNTS_WRONG;
  account *payer = in->accounts, *record = payer + 4;
  const account *governance = payer + 1, *vault = payer + 2, *registry = payer + 3;
  const u8 *mint = in->data + 1;
  if (!payer->signer || !payer->writable) return OWNER_NOT_SIGNER;
  if (!same32(payer[5].key, &SYSTEM_PROGRAM)) return SYSTEM_PROGRAM_WRONG;
  if (!is_vault(vault, in->program)) return VAULT_WRONG;
  if (!is_registry_of(registry, vault)) return REGISTRY_WRONG;
  if (!governance->signer || !same32(governance->key, registry->data + REGISTRY_GOVERNANCE)) return GOVERNANCE_WRONG;
  if (is_untouched(record)) {
    pda p = limit_path(vault->key, mint);
    u64 refused = open(in, record, &p, LIMIT_LEN, in->program);
    if (refused) return refused;
    put64(record->data, LIMIT_DISCRIMINATOR);
    copy32(record->data + LIMIT_VAULT, vault->key);
    copy32(record->data + LIMIT_MINT, mint);
    record->data[LIMIT_BUMP] = p.bump;
  } else if (!record->writable || !is_limit(record, vault, mint, in->program)) {
    return LIMIT_WRONG;
  }
  put64(record->data + LIMIT_CAP, get64(in->data + 33));
  return OK;
}

static u64 hold(const input *in) {
  const u8 *d = in->data;
  if (in->len < 18 || in->len != 18 + (u64)d[17] * SIGNATURE_LEN) return INSTRUCTION_MALFORMED;
  if (in->count != 3) return ACCOUNTS_WRONG;
  const account *vault = in->accounts, *registry = vault + 1, *record = vault + 2;
  u64 until = get64(d + 1), epoch = get64(d + 9);
  if (!is_vault(vault, in->program)) return VAULT_WRONG;
  if (!is_registry_of(registry, vault)) return REGISTRY_WRONG;
  if (!record->writable || !is_hold(record, vault, in->program)) return HOLD_WRONG;
  clock_sysvar clock;
  if (sol_get_clock_sysvar(&clock)) return SYSVAR_UNREADABLE;
  if (until <= clock.unix_time) return HOLD_PASSED;
  if (until > clock.unix_time + MAX_HOLD) return HOLD_TOO_LONG;
  if (epoch <= get64(record->data + HOLD_EPOCH)) return HOLD_NOT_NEWER;

  u8 words[192], digest[32];
  KECCAK_TEXT("Hold(bytes32 account,bytes32 chain,bytes32 vault,uint64 until,uint64 epoch)", words);
  copy32(words + 32, record->data + HOLD_ACCOUNT);
  copy32(words + 64, registry->data + REGISTRY_DESTINATION);
  copy32(words + 96, vault->key);
  word_u64(words + 128, until);
  word_u64(words + 160, epoch);
  typed_digest(registry->data, words, 192, digest);
  u64 refused = check_quorum(registry, digest, epoch, clock.unix_time, d + 17);
  if (refused) return refused;
  if (until > get64(record->data + HOLD_UNTIL)) put64(record->data + HOLD_UNTIL, until);
  put64(record->data + HOLD_EPOCH, epoch);
  return OK;
}

static u64 withdraw(const input *in) {
  const u8 *d = in->data, *id = d + 9;
  if (in->len < 58 || in->len != 58 + (u64)d[57] * SIGNATURE_LEN) return INSTRUCTION_MALFORMED;
  if (in->count != 12) return ACCOUNTS_WRONG;
  const account *owner = in->accounts, *vault = owner + 1, *mint = owner + 4, *to = owner + 6, *held = owner + 7,
                *registry = owner + 9;
  account *nonce = in->accounts + 10;
  u8 *holding = owner[2].data, *record = owner[3].data;
  u64 amount = get64(d + 1), epoch = get64(d + 41), expiry = get64(d + 49);
  u64 refused = check_payout(in);
  if (refused) return refused;
  if (!owner->writable) return OWNER_NOT_SIGNER;
  if (!same32(owner[11].key, &SYSTEM_PROGRAM)) return SYSTEM_PROGRAM_WRONG;
  if (!is_registry_of(registry, vault)) return REGISTRY_WRONG;
  if (!amount) return AMOUNT_ZERO;
  if (amount > get64(record + DEPOSIT_AMOUNT)) return AMOUNT_NOT_FREE;
  clock_sysvar clock;
  if (sol_get_clock_sysvar(&clock)) return SYSVAR_UNREADABLE;
  if (clock.unix_time > expiry) return PERMIT_EXPIRED;
  if (clock.unix_time < get64(held->data + HOLD_UNTIL) && get64(held->data + HOLD_EPOCH) >= epoch) return HELD;
  if (!is_untouched(nonce)) return NONCE_USED; /* it is burnt below, at the address of this nonce or not at all */

  u8 words[320], digest[32];
  KECCAK_TEXT("WithdrawalPermit(bytes32 account,bytes32 chain,bytes32 vault,bytes32 asset,uint256 amount,bytes32 to,"
              "bytes32 nonce,uint64 epoch,uint64 expiry)", words);
  copy32(words + 32, holding + HOLDING_ACCOUNT);
  copy32(words + 64, registry->data + REGISTRY_DESTINATION);
  copy32(words + 96, vault->key);
  copy32(words + 128, mint->key);
  word_u64(words + 160, amount);
  copy32(words + 192, to->key);
  copy32(words + 224, id);
  word_u64(words + 256, epoch);
  word_u64(words + 288, expiry);
  typed_digest(registry->data, words, 320, digest);
  if ((refused = check_quorum(registry, digest, epoch, clock.unix_time, d + 57))) return refused;

  pda p = nonce_path(vault->key, id);
  if ((refused = open(in, nonce, &p, NONCE_LEN, in->program))) return refused;
  put64(nonce->data, NONCE_DISCRIMINATOR);
  copy32(nonce->data + NONCE_VAULT, vault->key);
  copy32(nonce->data + NONCE_NONCE, id);
  nonce->data[NONCE_BUMP] = p.bump;
  u64 pending = get64(record + DEPOSIT_PENDING), free = get64(record + DEPOSIT_AMOUNT) - pending;
  if (amount > free) reduce_pending(holding, record, amount - free);
  pay_out(in, amount);
  return OK;
}

u64 entrypoint(u8 *region) {
  account accounts[12];
  input in = {accounts, 0, 0, 0, 0};
  if (parse_input(region, &in, 12)) return ACCOUNTS_WRONG;
  if (!in.len) return INSTRUCTION_MALFORMED;
  switch (in.data[0]) {
    case 0: return init(&in);
    case 1: return deposit(&in);
    case 2: return request(&in);
    case 3: return cancel(&in);
    case 4: return claim(&in);
    case 5: return limit(&in);
    case 6: return hold(&in);
    case 7: return withdraw(&in);
    default: return INSTRUCTION_MALFORMED;
  }
}
