/* The margin registry on Solana: certified roots, who may certify them, and what may be drawn against a margin here.
 *
 * The rules are those of the EVM registry; the statement, its EIP-712 digest and the secp256k1 signatures are the
 * same bytes on every chain. Upgrade authority: none, or one that is time-locked. Consumers pin the program's and
 * the registry account's address. Layouts and instructions in full: docs/programs/solana.md.
 *
 * Accounts (PDAs of this program; little-endian; never closed):
 *   registry  ["registry", deploymentId, destination, epochSeconds ‖ clockSkew ‖ maxLifetime ‖ timelock (LE, 32 bytes),
 *             governance, guardian]   4,224 bytes, laid out in quorum.h
 *             Anybody may initialise it: deploymentId is recomputed here from its parts, and everything else an
 *             initialiser chooses is in the seeds, so that a stranger who comes first either makes the very same
 *             account or another one.
 *   staged    ["set", registry, digest]   a set that may follow, at the address of its RotateSet digest, so that
 *             anybody may write it and nobody can write another there
 *             744 bytes: 0 "cmNXSET1"  8 registry 32  40 digest 32  72 bump u8  73 zero 7  80 set 664 (quorum.h)
 *   margin    ["acct", registry, account]   the leaf applied last, and what consumers have drawn
 *             224 bytes: 0 "cmACCNT1"  8 registry 32  40 account 32  72 bump u8  73 zero 7  80 used u128
 *             96 epoch u64  104 asOf u64  112 validUntil u64 (the leaf's or the statement's, whichever ends first)
 *             120 flags u32  124 zero 4  128 equity i128  144 assetsInitial u128  160 requirementInitial u128
 *             176 assetsMaintenance u128  192 requirementMaintenance u128  208 budget u128
 *   drawn     ["drawn", registry, account, authority]   what one consumer has drawn
 *             128 bytes: 0 "cmDRAWN1"  8 registry 32  40 account 32  72 authority 32  104 bump u8  105 zero 7
 *             112 used u128
 *   consumer  ["consumer", registry, authority]   a consumer is the address that signs its draws
 *             96 bytes: 0 "cmCONSM2"  8 registry 32  40 authority 32  72 listedFrom u64 (0: delisted)
 *             80 delistedAt u64 (0: never)  88 bump u8  89 zero 7
 *
 * Instructions (first byte), integers little-endian unless said otherwise; S signer, W writable:
 *   0 init      networkClass u8, threshold u8, n u8, notAfter u64, salt 32, destination 32, epochSeconds u64,
 *               clockSkew u64, maxLifetime u64, timelock u64, governance 32, guardian 32, members n x 20
 *               accounts: payer SW, registry W, system program
 *   1 post      header 100 bytes (big-endian: epoch u64, root 32, floor u64, setId u32, producedAt u64,
 *               validUntil u64, body 32), signatures = n u8, n x (index u8, r 32, vs 32)
 *               accounts: registry W
 *   2 verify    leaf 188 bytes (big-endian), n u8, n x 32 sibling hashes
 *               accounts: registry
 *               return data: one byte, 1 when the leaf holds now, else 0
 *   3 stage     setId u32, threshold u8, n u8, activationEpoch u64, notAfter u64, members n x 20
 *               accounts: payer SW, registry, staged W, system program
 *   4 rotate    signatures of the newest set over the staged digest
 *               accounts: registry W, staged
 *   5 schedule  nothing; the staged set follows without signatures once the timelock has passed
 *               accounts: governance S, registry W, staged
 *   6 execute   nothing; accounts: registry W, staged
 *   7 cancel    nothing; accounts: governance S, registry W
 *   8 list      authority 32; it may draw once the timelock has passed
 *               accounts: payer SW, governance S, registry, consumer W, system program
 *   9 delist    nothing; at once, repaying stays possible
 *               accounts: governance S, registry, consumer W
 *  10 pause     seconds u64; accounts: guardian S, registry W
 *  11 unpause   nothing; accounts: guardian or governance S, registry W
 *  12 apply     as verify; stores the leaf of the newest epoch; while paused the budget does not rise
 *               accounts: payer SW, registry, margin W, system program
 *  13 draw      account 32, amount u128 (1e-8 USD)
 *               accounts: payer SW, authority S, registry, consumer, margin W, drawn W, system program
 *  14 repay     account 32, amount u128
 *               accounts: authority S, registry, margin W, drawn W
 *  15 forgive   account 32, authority 32; writes off what a consumer drew, once it is delisted for the timelock
 *               accounts: governance S, registry, consumer, margin W, drawn W
 *
 * Refusals are custom error codes, 30 to 39 those of quorum.h; adapters/solana/programs.py mirrors both tables.
 */
#include "quorum.h"

enum refusal {
  OK = 0,
  INSTRUCTION_MALFORMED = 1,  /* unknown tag or wrong length */
  ACCOUNTS_WRONG = 2,         /* too few or too many accounts */
  PAYER_NOT_SIGNER = 3,       /* the payer must sign and be writable */
  SYSTEM_PROGRAM_WRONG = 4,   /* not the system program */
  ADDRESS_WRONG = 5,          /* not the address its seeds give */
  ALREADY_INITIALISED = 6,    /* the registry exists */
  STATE_WRONG = 7,            /* not owned by this program, wrong size or discriminator, or not writable */
  SYSVAR_UNREADABLE = 8,      /* clock or rent cannot be used */
  AUTHORITY_WRONG = 9,        /* governance, guardian or the consumer's authority must sign */
  NETWORK_CLASS_UNKNOWN = 10, /* not 1 (mainnet), 2 (testnet) or 3 (devnet) */
  MEMBER_COUNT_WRONG = 11,    /* none, above 32, or below 4 outside a devnet */
  THRESHOLD_WRONG = 12,       /* below floor((n+f)/2)+1 or above n */
  MEMBER_INVALID = 13,        /* zero or repeated */
  PARAMETER_INVALID = 14,     /* a zero epoch, lifetime or governance; notAfter or timelock outside its bounds */
  EPOCH_NOT_NEWER = 20,       /* epoch <= the last one */
  PRODUCED_AHEAD = 21,        /* producedAt beyond now + clockSkew */
  EXPIRED = 22,               /* validUntil <= now */
  LIFETIME_TOO_LONG = 23,     /* validUntil - producedAt above maxLifetime, or not positive */
  FLOOR_BACKWARDS = 24,       /* floor below the stored one */
  FLOOR_ABOVE_EPOCH = 25,     /* floor above the epoch it comes with */
  SET_ID_WRONG = 26,          /* not the set that the epoch demands */
  ROOT_ZERO = 27,             /* an empty root */
  SET_NOT_NEXT = 40,          /* set ids follow one another */
  SET_PENDING = 41,           /* the newest set is not active yet */
  ACTIVATION_WRONG = 42,      /* not after epoch and activation of the newest, or over 90 days ahead */
  SET_LIFETIME_WRONG = 43,    /* notAfter past, or more than 90 days after the activation outside a devnet */
  RECOVERY_NONE = 44,         /* nothing, or another set, is scheduled */
  TIMELOCK_RUNNING = 45,      /* too early */
  LISTED_ALREADY = 50,        /* delist it first */
  NOT_LISTED = 51,            /* never, no longer, or not yet */
  PAUSE_TOO_LONG = 52,        /* no time at all, or more than three days */
  PAUSE_TOO_SOON = 53,        /* paused, or for less time unpaused than it was paused before */
  PAUSED = 54,                /* no draw until the pause ends */
  NOT_PAUSED = 55,            /* no pause to end */
  LEAF_NOT_NEWEST = 60,       /* not of the newest epoch; for draw: apply the newest leaf first */
  LEAF_EXPIRED = 61,          /* the leaf's or the statement's validUntil has passed */
  LEAF_WRONG = 62,            /* another destination's, or not under the root */
  AMOUNT_ZERO = 63,           /* nothing asked for, or nothing to forgive */
  BUDGET_EXCEEDED = 64,       /* used + amount above the budget */
  REPAID_TOO_MUCH = 65,       /* more than this consumer has drawn */
  LEAF_FLAGGED = 66,          /* stale or monitored: nothing may be drawn */
};

enum { STAGED_REGISTRY = 8, STAGED_DIGEST = 40, STAGED_BUMP = 72, STAGED_SET = 80, STAGED_LEN = STAGED_SET + SET_LEN };
enum { MARGIN_REGISTRY = 8, MARGIN_ACCOUNT = 40, MARGIN_BUMP = 72, MARGIN_USED = 80, MARGIN_EPOCH = 96,
       MARGIN_AS_OF = 104, MARGIN_VALID_UNTIL = 112, MARGIN_FLAGS = 120, MARGIN_AMOUNTS = 128, MARGIN_BUDGET = 208,
       MARGIN_LEN = 224 };
enum { DRAWN_REGISTRY = 8, DRAWN_ACCOUNT = 40, DRAWN_AUTHORITY = 72, DRAWN_BUMP = 104, DRAWN_USED = 112,
       DRAWN_LEN = 128 };
enum { CONSUMER_REGISTRY = 8, CONSUMER_AUTHORITY = 40, CONSUMER_LISTED_FROM = 72, CONSUMER_DELISTED_AT = 80,
       CONSUMER_BUMP = 88, CONSUMER_LEN = 96 };
/* offsets in a packed leaf; equity and the five amounts after it are 16 bytes each */
enum { LEAF_DESTINATION = 32, LEAF_EPOCH = 64, LEAF_AMOUNTS = 72, LEAF_BUDGET = 152, LEAF_AS_OF = 168,
       LEAF_VALID_UNTIL = 176, LEAF_FLAGS = 184, LEAF_LEN = 188 };
enum { HEADER_LEN = 100, MAX_DEPTH = 32, INIT_LEN = 172, STAGE_LEN = 23, TIMES_LEN = 32 };
enum { DAY = 86400, MAX_SET_LIFETIME = 90 * DAY, MAX_ROTATION_AHEAD = 90 * DAY, MAX_TIMELOCK = 30 * DAY,
       MAX_PAUSE = 3 * DAY, DEVNET = 3, STALE = 1, MONITORED = 32 };

#define STAGED_DISCRIMINATOR 0x31544553584e6d63UL   /* "cmNXSET1" */
#define MARGIN_DISCRIMINATOR 0x31544e4343416d63UL   /* "cmACCNT1" */
#define DRAWN_DISCRIMINATOR 0x314e574152446d63UL    /* "cmDRAWN1" */
#define CONSUMER_DISCRIMINATOR 0x324d534e4f436d63UL /* "cmCONSM2" */

/* ---- addresses ---- */
INLINE void registry_seeds(pda *p, const u8 *deployment, const u8 *destination, const u8 *times, const u8 *governance,
                           const u8 *guardian) {
  p->seeds[0] = (slice){"registry", 8};
  p->seeds[1] = (slice){deployment, 32};
  p->seeds[2] = (slice){destination, 32};
  p->seeds[3] = (slice){times, TIMES_LEN};
  p->seeds[4] = (slice){governance, 32};
  p->seeds[5] = (slice){guardian, 32};
  p->count = 6;
}
INLINE void seeds_of(pda *p, const char *kind, u64 len, const key32 *registry, const void *first, const void *second) {
  p->seeds[0] = (slice){kind, len};
  p->seeds[1] = (slice){registry, 32};
  p->seeds[2] = (slice){first, 32};
  p->seeds[3] = (slice){second, 32};
  p->count = second ? 4 : 3;
}
#define SEEDS(p, kind, registry, first, second) seeds_of(p, kind, sizeof(kind) - 1, registry, first, second)

static u64 is_registry(const account *a, const key32 *program) {
  pda p;
  const u8 *s = a->data;
  if (!same32(a->owner, program) || !is_registry_data(s, a->data_len)) return 0;
  registry_seeds(&p, s + REGISTRY_DEPLOYMENT, s + REGISTRY_DESTINATION, s + REGISTRY_EPOCH_SECONDS,
                 s + REGISTRY_GOVERNANCE, s + REGISTRY_GUARDIAN);
  return is_at(&p, s[REGISTRY_BUMP], a, program);
}
static u64 is_staged(const account *a, const key32 *program, const key32 *registry) {
  pda p;
  if (!is_state_of(a, program, STAGED_LEN, STAGED_DISCRIMINATOR)) return 0;
  SEEDS(&p, "set", registry, a->data + STAGED_DIGEST, 0);
  return is_at(&p, a->data[STAGED_BUMP], a, program);
}
static u64 is_margin(const account *a, const key32 *program, const key32 *registry, const void *account_id) {
  pda p;
  if (!a->writable || !is_state_of(a, program, MARGIN_LEN, MARGIN_DISCRIMINATOR)) return 0;
  SEEDS(&p, "acct", registry, account_id, 0);
  return is_at(&p, a->data[MARGIN_BUMP], a, program);
}
static u64 is_drawn(const account *a, const key32 *program, const key32 *registry, const void *account_id,
                    const key32 *authority) {
  pda p;
  if (!a->writable || !is_state_of(a, program, DRAWN_LEN, DRAWN_DISCRIMINATOR)) return 0;
  SEEDS(&p, "drawn", registry, account_id, authority);
  return is_at(&p, a->data[DRAWN_BUMP], a, program);
}
static u64 is_consumer(const account *a, const key32 *program, const key32 *registry, const void *authority) {
  pda p;
  if (!is_state_of(a, program, CONSUMER_LEN, CONSUMER_DISCRIMINATOR)) return 0;
  SEEDS(&p, "consumer", registry, authority, 0);
  return is_at(&p, a->data[CONSUMER_BUMP], a, program);
}
/* Make `a`, until now untouched, the account of these seeds; the first account of the instruction pays. */
static u64 open_account(const input *in, account *a, pda *p, u64 len) {
  if (!is_at_canonical(p, a, in->program)) return ADDRESS_WRONG;
  signer_seeds signer = {p->seeds, p->count + 1};
  return create_pda(in, a, len, in->program, &signer) ? SYSVAR_UNREADABLE : OK;
}

/* What begins every instruction that creates something: its first account pays, its last is the system program. */
static u64 check_payer(const input *in) {
  if (!in->accounts->signer || !in->accounts->writable) return PAYER_NOT_SIGNER;
  if (!same32(in->accounts[in->count - 1].key, &SYSTEM_PROGRAM)) return SYSTEM_PROGRAM_WRONG;
  return OK;
}
static u64 read_clock(u64 *now) {
  clock_sysvar clock;
  if (sol_get_clock_sysvar(&clock)) return SYSVAR_UNREADABLE;
  *now = clock.unix_time;
  return OK;
}

/* ---- sets ---- */
static u64 check_members(u64 network_class, u64 threshold, u64 n, const u8 *members) {
  u64 faulty = (n - 1) / 3;
  if (threshold < (n + faulty) / 2 + 1 || threshold > n) return THRESHOLD_WRONG;
  if (n < 4 && network_class != DEVNET) return MEMBER_COUNT_WRONG;
  for (u64 i = 0; i < n; i++) {
    const u8 *m = members + 20 * i;
    if (!(get64(m) | get64(m + 8) | *(const u32 *)(m + 16))) return MEMBER_INVALID;
    for (const u8 *o = members; o < m; o += 20)
      if (same20(o, m)) return MEMBER_INVALID;
  }
  return OK;
}
INLINE void word_member(u8 *w, const u8 *m) {
  word_zero(w);
  put64(w + 12, get64(m));
  put64(w + 20, get64(m + 8));
  *(u32 *)(w + 28) = *(const u32 *)(m + 16);
}
INLINE void write_set(u8 *set, u64 id, u64 threshold, u64 n, u64 activation, u64 not_after, const u8 *members) {
  *(u32 *)(set + SET_ID) = (u32)id;
  set[SET_THRESHOLD] = (u8)threshold;
  set[SET_COUNT] = (u8)n;
  put64(set + SET_ACTIVATION, activation);
  put64(set + SET_NOT_AFTER, not_after);
  sol_memcpy_(set + SET_MEMBERS, members, 20 * n);
}

static u64 init(const input *in) {
  const u8 *d = in->data;
  if (in->len < INIT_LEN) return INSTRUCTION_MALFORMED;
  if (in->count != 3) return ACCOUNTS_WRONG;
  account *registry = in->accounts + 1;
  u64 network_class = d[1], threshold = d[2], n = d[3], not_after = get64(d + 4), now, refused;
  const u8 *salt = d + 12, *destination = d + 44, *times = d + 76, *governance = d + 108, *guardian = d + 140,
           *members = d + INIT_LEN;

  if ((refused = check_payer(in))) return refused;
  if (network_class < 1 || network_class > DEVNET) return NETWORK_CLASS_UNKNOWN;
  if (n < 1 || n > MAX_MEMBERS) return MEMBER_COUNT_WRONG;
  if (in->len != INIT_LEN + 20 * n) return INSTRUCTION_MALFORMED;
  if ((refused = check_members(network_class, threshold, n, members))) return refused;
  if ((refused = read_clock(&now))) return refused;
  u64 timelock = get64(times + 24);
  if (!get64(times) || !get64(times + 16) || not_after <= now || timelock > MAX_TIMELOCK || zero32(governance))
    return PARAMETER_INVALID;
  if (network_class != DEVNET && (not_after - now > MAX_SET_LIFETIME || timelock < DAY)) return PARAMETER_INVALID;

  /* deploymentId = keccak256(abi.encode(networkClass, membersHash, threshold, notAfter, salt)) */
  u8 words[160], pair[64], deployment[32];
  word_zero(pair);
  for (u64 i = 0; i < n; i++) {
    word_member(pair + 32, members + 20 * i);
    keccak(pair, 64, pair);
  }
  word_u64(words, network_class);
  copy32(words + 32, pair);
  word_u64(words + 64, threshold);
  word_u64(words + 96, not_after);
  copy32(words + 128, salt);
  keccak(words, 160, deployment);

  pda p;
  registry_seeds(&p, deployment, destination, times, governance, guardian);
  if (!is_untouched(registry)) return ALREADY_INITIALISED;
  if ((refused = open_account(in, registry, &p, REGISTRY_LEN))) return refused;

  u8 *s = registry->data;
  put64(s, REGISTRY_DISCRIMINATOR);
  copy32(s + REGISTRY_DEPLOYMENT, deployment);
  copy32(s + REGISTRY_DESTINATION, destination);
  KECCAK_TEXT("EIP712Domain(string name,string version,bytes32 salt)", words);
  KECCAK_TEXT("crossmargin", words + 32);
  KECCAK_TEXT("1", words + 64);
  copy32(words + 96, deployment);
  keccak(words, 128, s + REGISTRY_DOMAIN);
  sol_memcpy_(s + REGISTRY_EPOCH_SECONDS, times, TIMES_LEN);
  copy32(s + REGISTRY_GOVERNANCE, governance);
  copy32(s + REGISTRY_GUARDIAN, guardian);
  copy32(s + REGISTRY_SALT, salt);
  s[REGISTRY_NETWORK_CLASS] = (u8)network_class;
  s[REGISTRY_BUMP] = p.bump;
  write_set(s + REGISTRY_NEWEST_SET, 1, threshold, n, 0, not_after, members);
  return OK;
}

static u64 stage(const input *in) {
  const u8 *d = in->data, *members = d + STAGE_LEN;
  if (in->len < STAGE_LEN) return INSTRUCTION_MALFORMED;
  if (in->count != 4) return ACCOUNTS_WRONG;
  account *registry = in->accounts + 1, *staged = in->accounts + 2;
  u64 id = *(const u32 *)(d + 1), threshold = d[5], n = d[6], activation = get64(d + 7), not_after = get64(d + 15),
      refused;
  if ((refused = check_payer(in))) return refused;
  if (n < 1 || n > MAX_MEMBERS) return MEMBER_COUNT_WRONG;
  if (in->len != STAGE_LEN + 20 * n) return INSTRUCTION_MALFORMED;
  if (!is_registry(registry, in->program)) return STATE_WRONG;
  if ((refused = check_members(registry->data[REGISTRY_NETWORK_CLASS], threshold, n, members))) return refused;

  u8 words[192], list[32 * MAX_MEMBERS], digest[32];
  for (u64 i = 0; i < n; i++) word_member(list + 32 * i, members + 20 * i);
  KECCAK_TEXT("RotateSet(uint32 setId,address[] members,uint32 threshold,uint64 activationEpoch,uint64 notAfter)",
              words);
  word_u64(words + 32, id);
  keccak(list, 32 * n, words + 64);
  word_u64(words + 96, threshold);
  word_u64(words + 128, activation);
  word_u64(words + 160, not_after);
  typed_digest(registry->data, words, 192, digest);

  pda p;
  SEEDS(&p, "set", registry->key, digest, 0);
  if (!is_untouched(staged)) /* somebody staged the same */
    return is_staged(staged, in->program, registry->key) && same32(staged->data + STAGED_DIGEST, digest)
               ? OK : ADDRESS_WRONG;
  if ((refused = open_account(in, staged, &p, STAGED_LEN))) return refused;
  put64(staged->data, STAGED_DISCRIMINATOR);
  copy32(staged->data + STAGED_REGISTRY, registry->key);
  copy32(staged->data + STAGED_DIGEST, digest);
  staged->data[STAGED_BUMP] = p.bump;
  write_set(staged->data + STAGED_SET, id, threshold, n, activation, not_after, members);
  return OK;
}

/* May `set` follow the newest one now? */
static u64 check_next(const u8 *s, const u8 *set, u64 now) {
  const u8 *newest = s + REGISTRY_NEWEST_SET;
  u64 seconds = get64(s + REGISTRY_EPOCH_SECONDS), current = now / seconds, last = get64(s + REGISTRY_EPOCH),
      since = get64(newest + SET_ACTIVATION), activation = get64(set + SET_ACTIVATION),
      not_after = get64(set + SET_NOT_AFTER);
  if (*(const u32 *)set != (u64)*(const u32 *)newest + 1) return SET_NOT_NEXT;
  if (since > last && since > current) return SET_PENDING;
  /* The clock may be past it: a chain that stood still, or was told late, takes the rotation all the same. */
  if (activation <= last || activation <= since || activation > current + MAX_ROTATION_AHEAD / seconds)
    return ACTIVATION_WRONG;
  if (not_after <= now) return SET_LIFETIME_WRONG;
  if (s[REGISTRY_NETWORK_CLASS] != DEVNET && not_after > activation * seconds + MAX_SET_LIFETIME)
    return SET_LIFETIME_WRONG;
  return OK;
}
/* Let `set` follow the newest one. A recovery that was scheduled is off. */
static u64 install(u8 *s, const u8 *set) {
  sol_memcpy_(s + REGISTRY_OLDER_SET, s + REGISTRY_NEWEST_SET, SET_LEN);
  sol_memcpy_(s + REGISTRY_NEWEST_SET, set, SET_LEN);
  put64(s + REGISTRY_RECOVERY_AT, 0);
  return OK;
}

/* What begins every change of the registry's state: it is writable, ours, and the time is known. */
static u64 open_registry(const input *in, const account *registry, u64 *now) {
  if (!registry->writable || !is_registry(registry, in->program)) return STATE_WRONG;
  return read_clock(now);
}
/* The first account must be the registry's governance, and sign. */
static u64 check_governance(const input *in, const account *registry) {
  const account *who = in->accounts;
  return who->signer && same32(who->key, registry->data + REGISTRY_GOVERNANCE) ? OK : AUTHORITY_WRONG;
}

static u64 rotate(const input *in) {
  if (in->len < 2 || in->len != 2 + (u64)in->data[1] * SIGNATURE_LEN) return INSTRUCTION_MALFORMED;
  if (in->count != 2) return ACCOUNTS_WRONG;
  const account *registry = in->accounts, *staged = registry + 1;
  u64 now, refused = open_registry(in, registry, &now);
  if (refused) return refused;
  if (!is_staged(staged, in->program, registry->key)) return STATE_WRONG;
  const u8 *set = staged->data + STAGED_SET;
  if ((refused = check_next(registry->data, set, now)) ||
      (refused = verify_signatures(registry->data + REGISTRY_NEWEST_SET, staged->data + STAGED_DIGEST, now,
                                   in->data[1], in->data + 2)))
    return refused;
  return install(registry->data, set);
}

static u64 schedule(const input *in) {
  if (in->len != 1) return INSTRUCTION_MALFORMED;
  if (in->count != 3) return ACCOUNTS_WRONG;
  const account *registry = in->accounts + 1, *staged = registry + 1;
  u64 now, refused = open_registry(in, registry, &now);
  if (refused || (refused = check_governance(in, registry))) return refused;
  if (!is_staged(staged, in->program, registry->key)) return STATE_WRONG;
  u8 *s = registry->data;
  copy32(s + REGISTRY_RECOVERY_DIGEST, staged->data + STAGED_DIGEST);
  put64(s + REGISTRY_RECOVERY_AT, now + get64(s + REGISTRY_TIMELOCK));
  return OK;
}

static u64 execute(const input *in) {
  if (in->len != 1) return INSTRUCTION_MALFORMED;
  if (in->count != 2) return ACCOUNTS_WRONG;
  const account *registry = in->accounts, *staged = registry + 1;
  u64 now, refused = open_registry(in, registry, &now);
  if (refused) return refused;
  if (!is_staged(staged, in->program, registry->key)) return STATE_WRONG;
  const u8 *s = registry->data;
  u64 from = get64(s + REGISTRY_RECOVERY_AT);
  if (!from || !same32(s + REGISTRY_RECOVERY_DIGEST, staged->data + STAGED_DIGEST)) return RECOVERY_NONE;
  if (now < from) return TIMELOCK_RUNNING;
  refused = check_next(s, staged->data + STAGED_SET, now);
  return refused ? refused : install(registry->data, staged->data + STAGED_SET);
}

static u64 cancel(const input *in) {
  if (in->len != 1) return INSTRUCTION_MALFORMED;
  if (in->count != 2) return ACCOUNTS_WRONG;
  const account *registry = in->accounts + 1;
  u64 now, refused = open_registry(in, registry, &now);
  if (refused || (refused = check_governance(in, registry))) return refused;
  if (!get64(registry->data + REGISTRY_RECOVERY_AT)) return RECOVERY_NONE;
  put64(registry->data + REGISTRY_RECOVERY_AT, 0);
  return OK;
}

/* ---- statements ---- */
static u64 post(const input *in) {
  const u8 *h = in->data + 1, *signatures = h + HEADER_LEN + 1;
  if (in->len < 1 + HEADER_LEN + 1) return INSTRUCTION_MALFORMED;
  u64 n = h[HEADER_LEN], now, refused;
  if (in->len != 1 + HEADER_LEN + 1 + n * SIGNATURE_LEN) return INSTRUCTION_MALFORMED;
  if (in->count != 1) return ACCOUNTS_WRONG;
  if ((refused = open_registry(in, in->accounts, &now))) return refused;
  u8 *s = in->accounts->data;

  u64 epoch = get64be(h), floor = get64be(h + 40), set_id = get32be(h + 48), produced_at = get64be(h + 52),
      valid_until = get64be(h + 60);
  const u8 *root = h + 8, *body = h + 68, *set = find_set(s, epoch);
  if (epoch <= get64(s + REGISTRY_EPOCH)) return EPOCH_NOT_NEWER;
  if (epoch > epoch_at(s, now) + EPOCHS_AHEAD) return EPOCH_AHEAD;
  if (produced_at > now && produced_at - now > get64(s + REGISTRY_CLOCK_SKEW)) return PRODUCED_AHEAD;
  if (valid_until <= now) return EXPIRED;
  if (valid_until <= produced_at || valid_until - produced_at > get64(s + REGISTRY_MAX_LIFETIME))
    return LIFETIME_TOO_LONG;
  if (floor < get64(s + REGISTRY_FLOOR)) return FLOOR_BACKWARDS;
  if (floor > epoch) return FLOOR_ABOVE_EPOCH;
  if (!set) return SET_UNKNOWN;
  if (is_superseded(s, set, now)) return SET_SUPERSEDED;
  if (set_id != *(const u32 *)(set + SET_ID)) return SET_ID_WRONG;
  if (zero32(root)) return ROOT_ZERO;

  u8 words[256], digest[32];
  KECCAK_TEXT("MarginStatement(uint64 epoch,bytes32 root,uint64 floor,uint32 setId,uint64 producedAt,"
              "uint64 validUntil,bytes32 body)", words);
  word_u64(words + 32, epoch);
  copy32(words + 64, root);
  word_u64(words + 96, floor);
  word_u64(words + 128, set_id);
  word_u64(words + 160, produced_at);
  word_u64(words + 192, valid_until);
  copy32(words + 224, body);
  typed_digest(s, words, 256, digest);
  if ((refused = verify_signatures(set, digest, now, n, signatures))) return refused;

  put64(s + REGISTRY_EPOCH, epoch);
  put64(s + REGISTRY_FLOOR, floor);
  put64(s + REGISTRY_PRODUCED_AT, produced_at);
  put64(s + REGISTRY_VALID_UNTIL, valid_until);
  put64(s + REGISTRY_POSTED_AT, now);
  u8 *slot = s + REGISTRY_RING + RING_STRIDE * (epoch % RING_SLOTS);
  put64(slot, epoch);
  copy32(slot + 8, root);
  return OK;
}

/* An unsigned or signed 128-bit big-endian integer as an ABI word. */
INLINE void word_128(u8 *w, const u8 *v, int is_signed) {
  u64 fill = is_signed && v[0] >> 7 ? ~0UL : 0;
  put64(w, fill);
  put64(w + 8, fill);
  put64(w + 16, get64(v));
  put64(w + 24, get64(v + 8));
}

/* Is big-endian a below b? */
INLINE int below32(const u8 *a, const u8 *b) {
  for (u64 i = 0; i < 32; i += 8) {
    u64 x = get64be(a + i), y = get64be(b + i);
    if (x != y) return x < y;
  }
  return 0;
}

/* The data of verify and apply: tag, leaf, depth, siblings. */
static u64 is_leaf_data(const input *in) {
  if (in->len < 1 + LEAF_LEN + 1) return 0;
  u64 depth = in->data[1 + LEAF_LEN];
  return depth <= MAX_DEPTH && in->len == 1 + LEAF_LEN + 1 + 32 * depth;
}

/* Does the proof lead from the leaf to the root? leaf: packed, followed by depth and siblings. */
static u64 leads_to(const u8 *leaf, const u8 *root) {
  u8 words[384], node[32];
  const u8 *sibling = leaf + LEAF_LEN + 1;
  slice pair[2] = {{node, 32}, {sibling, 32}};
  copy32(words, leaf);
  copy32(words + 32, leaf + LEAF_DESTINATION);
  word_u64(words + 64, get64be(leaf + LEAF_EPOCH));
  for (u64 i = 0; i < 6; i++) word_128(words + 96 + 32 * i, leaf + LEAF_AMOUNTS + 16 * i, i == 0); /* equity first */
  word_u64(words + 288, get64be(leaf + LEAF_AS_OF));
  word_u64(words + 320, get64be(leaf + LEAF_VALID_UNTIL));
  word_u64(words + 352, get32be(leaf + LEAF_FLAGS));
  keccak(words, 384, node);
  keccak(node, 32, node);
  for (u64 i = 0; i < leaf[LEAF_LEN]; i++, sibling += 32) {
    int first = below32(node, sibling);
    pair[0].at = first ? node : sibling;
    pair[1].at = first ? sibling : node;
    sol_keccak256(pair, 2, node);
  }
  return same32(node, root);
}

static u64 verify(const input *in) {
  const u8 *leaf = in->data + 1;
  if (!is_leaf_data(in)) return INSTRUCTION_MALFORMED;
  if (in->count != 1) return ACCOUNTS_WRONG;
  if (!is_registry(in->accounts, in->program)) return STATE_WRONG;
  const u8 *s = in->accounts->data;
  u64 now, refused = read_clock(&now);
  if (refused) return refused;
  u64 last = get64(s + REGISTRY_EPOCH), epoch = get64be(leaf + LEAF_EPOCH);
  const u8 *slot = s + REGISTRY_RING + RING_STRIDE * (epoch % RING_SLOTS);
  u8 holds = same32(leaf + LEAF_DESTINATION, s + REGISTRY_DESTINATION) && epoch && epoch >= get64(s + REGISTRY_FLOOR) &&
             epoch <= last && last - epoch < RING_SLOTS && get64(slot) == epoch &&
             now < get64be(leaf + LEAF_VALID_UNTIL) && (epoch != last || now < get64(s + REGISTRY_VALID_UNTIL)) &&
             leads_to(leaf, slot + 8);
  sol_set_return_data(&holds, 1);
  return OK;
}

/* ---- what may be drawn ---- */
static u64 list(const input *in) {
  if (in->len != 33) return INSTRUCTION_MALFORMED;
  if (in->count != 5) return ACCOUNTS_WRONG;
  const account *governance = in->accounts + 1, *registry = governance + 1;
  account *consumer = in->accounts + 3;
  const u8 *authority = in->data + 1, *s = registry->data;
  u64 now, refused = check_payer(in);
  if (refused) return refused;
  if (!is_registry(registry, in->program)) return STATE_WRONG;
  if (!governance->signer || !same32(governance->key, s + REGISTRY_GOVERNANCE)) return AUTHORITY_WRONG;
  if ((refused = read_clock(&now))) return refused;
  if (is_untouched(consumer)) {
    pda p;
    SEEDS(&p, "consumer", registry->key, authority, 0);
    if ((refused = open_account(in, consumer, &p, CONSUMER_LEN))) return refused;
    put64(consumer->data, CONSUMER_DISCRIMINATOR);
    copy32(consumer->data + CONSUMER_REGISTRY, registry->key);
    copy32(consumer->data + CONSUMER_AUTHORITY, authority);
    consumer->data[CONSUMER_BUMP] = p.bump;
  } else if (!consumer->writable || !is_consumer(consumer, in->program, registry->key, authority)) {
    return STATE_WRONG;
  }
  if (get64(consumer->data + CONSUMER_LISTED_FROM)) return LISTED_ALREADY;
  put64(consumer->data + CONSUMER_LISTED_FROM, now + get64(s + REGISTRY_TIMELOCK));
  return OK;
}

static u64 delist(const input *in) {
  if (in->len != 1) return INSTRUCTION_MALFORMED;
  if (in->count != 3) return ACCOUNTS_WRONG;
  const account *registry = in->accounts + 1, *consumer = registry + 1;
  u64 now, refused;
  if (!is_registry(registry, in->program)) return STATE_WRONG;
  if ((refused = check_governance(in, registry)) || (refused = read_clock(&now))) return refused;
  if (!consumer->writable || consumer->data_len != CONSUMER_LEN ||
      !is_consumer(consumer, in->program, registry->key, consumer->data + CONSUMER_AUTHORITY))
    return STATE_WRONG;
  if (!get64(consumer->data + CONSUMER_LISTED_FROM)) return NOT_LISTED;
  put64(consumer->data + CONSUMER_LISTED_FROM, 0);
  put64(consumer->data + CONSUMER_DELISTED_AT, now);
  return OK;
}

INLINE int is_paused(const u8 *s, u64 now) { return now < get64(s + REGISTRY_PAUSED_UNTIL); }

static u64 pause(const input *in) {
  if (in->len != 9) return INSTRUCTION_MALFORMED;
  if (in->count != 2) return ACCOUNTS_WRONG;
  const account *guardian = in->accounts, *registry = guardian + 1;
  u64 now, seconds = get64(in->data + 1), refused = open_registry(in, registry, &now);
  if (refused) return refused;
  u8 *s = registry->data;
  /* Nobody can sign for the zero address. */
  if (!guardian->signer || !same32(guardian->key, s + REGISTRY_GUARDIAN)) return AUTHORITY_WRONG;
  if (!seconds || seconds > MAX_PAUSE) return PAUSE_TOO_LONG;
  u64 until = get64(s + REGISTRY_PAUSED_UNTIL);
  if (now < until + (until - get64(s + REGISTRY_PAUSED_FROM))) return PAUSE_TOO_SOON;
  put64(s + REGISTRY_PAUSED_FROM, now);
  put64(s + REGISTRY_PAUSED_UNTIL, now + seconds);
  return OK;
}

static u64 unpause(const input *in) {
  if (in->len != 1) return INSTRUCTION_MALFORMED;
  if (in->count != 2) return ACCOUNTS_WRONG;
  const account *who = in->accounts, *registry = who + 1;
  u64 now, refused = open_registry(in, registry, &now);
  if (refused) return refused;
  u8 *s = registry->data;
  if (!who->signer || !(same32(who->key, s + REGISTRY_GUARDIAN) || same32(who->key, s + REGISTRY_GOVERNANCE)))
    return AUTHORITY_WRONG;
  if (!is_paused(s, now)) return NOT_PAUSED;
  put64(s + REGISTRY_PAUSED_UNTIL, now);
  return OK;
}

static u64 apply(const input *in) {
  const u8 *leaf = in->data + 1;
  if (!is_leaf_data(in)) return INSTRUCTION_MALFORMED;
  if (in->count != 4) return ACCOUNTS_WRONG;
  const account *registry = in->accounts + 1;
  account *margin = in->accounts + 2;
  u64 now, refused = check_payer(in);
  if (refused) return refused;
  if (!is_registry(registry, in->program)) return STATE_WRONG;
  if ((refused = read_clock(&now))) return refused;
  const u8 *s = registry->data;
  u64 epoch = get64be(leaf + LEAF_EPOCH), until = get64be(leaf + LEAF_VALID_UNTIL),
      header_until = get64(s + REGISTRY_VALID_UNTIL);
  if (header_until < until) until = header_until;
  if (!epoch || epoch != get64(s + REGISTRY_EPOCH)) return LEAF_NOT_NEWEST; /* and so not below the floor */
  if (now >= until) return LEAF_EXPIRED;
  if (!same32(leaf + LEAF_DESTINATION, s + REGISTRY_DESTINATION) ||
      !leads_to(leaf, s + REGISTRY_RING + RING_STRIDE * (epoch % RING_SLOTS) + 8))
    return LEAF_WRONG;

  if (is_untouched(margin)) {
    pda p;
    SEEDS(&p, "acct", registry->key, leaf, 0);
    if ((refused = open_account(in, margin, &p, MARGIN_LEN))) return refused;
    put64(margin->data, MARGIN_DISCRIMINATOR);
    copy32(margin->data + MARGIN_REGISTRY, registry->key);
    copy32(margin->data + MARGIN_ACCOUNT, leaf);
    margin->data[MARGIN_BUMP] = p.bump;
  } else if (!is_margin(margin, in->program, registry->key, leaf)) {
    return STATE_WRONG;
  }
  u8 *m = margin->data;
  if (get64(m + MARGIN_EPOCH) == epoch) return OK;
  u128 before = get128(m + MARGIN_BUDGET);
  put64(m + MARGIN_EPOCH, epoch);
  put64(m + MARGIN_AS_OF, get64be(leaf + LEAF_AS_OF));
  put64(m + MARGIN_VALID_UNTIL, until);
  *(u32 *)(m + MARGIN_FLAGS) = get32be(leaf + LEAF_FLAGS);
  for (u64 i = 0; i < 6; i++) {
    put64(m + MARGIN_AMOUNTS + 16 * i, get64be(leaf + LEAF_AMOUNTS + 16 * i + 8));
    put64(m + MARGIN_AMOUNTS + 16 * i + 8, get64be(leaf + LEAF_AMOUNTS + 16 * i));
  }
  if (is_paused(s, now) && get128(m + MARGIN_BUDGET) > before) put128(m + MARGIN_BUDGET, before);
  return OK;
}

static u64 draw(const input *in) {
  if (in->len != 49) return INSTRUCTION_MALFORMED;
  if (in->count != 7) return ACCOUNTS_WRONG;
  const account *authority = in->accounts + 1, *registry = authority + 1, *consumer = authority + 2,
                *margin = authority + 3;
  account *drawn = in->accounts + 5;
  const u8 *account_id = in->data + 1, *s = registry->data;
  u128 amount = get128(in->data + 33);
  u64 now, refused = check_payer(in);
  if (refused) return refused;
  if (!authority->signer) return AUTHORITY_WRONG;
  if (!is_registry(registry, in->program)) return STATE_WRONG;
  if ((refused = read_clock(&now))) return refused;
  if (is_untouched(consumer)) return NOT_LISTED;
  if (!is_consumer(consumer, in->program, registry->key, authority->key)) return STATE_WRONG;
  u64 from = get64(consumer->data + CONSUMER_LISTED_FROM);
  if (!from || now < from) return NOT_LISTED;
  if (is_paused(s, now)) return PAUSED;
  if (is_untouched(margin)) return LEAF_NOT_NEWEST;
  if (!is_margin(margin, in->program, registry->key, account_id)) return STATE_WRONG;
  u8 *m = margin->data;
  if (get64(m + MARGIN_EPOCH) != get64(s + REGISTRY_EPOCH)) return LEAF_NOT_NEWEST;
  if (now >= get64(m + MARGIN_VALID_UNTIL)) return LEAF_EXPIRED;
  if (*(const u32 *)(m + MARGIN_FLAGS) & (STALE | MONITORED)) return LEAF_FLAGGED;
  if (!amount) return AMOUNT_ZERO;
  u128 used = get128(m + MARGIN_USED), budget = get128(m + MARGIN_BUDGET);
  if (used > budget || amount > budget - used) return BUDGET_EXCEEDED;

  if (is_untouched(drawn)) {
    pda p;
    SEEDS(&p, "drawn", registry->key, account_id, authority->key);
    if ((refused = open_account(in, drawn, &p, DRAWN_LEN))) return refused;
    put64(drawn->data, DRAWN_DISCRIMINATOR);
    copy32(drawn->data + DRAWN_REGISTRY, registry->key);
    copy32(drawn->data + DRAWN_ACCOUNT, account_id);
    copy32(drawn->data + DRAWN_AUTHORITY, authority->key);
    drawn->data[DRAWN_BUMP] = p.bump;
  } else if (!is_drawn(drawn, in->program, registry->key, account_id, authority->key)) {
    return STATE_WRONG;
  }
  put128(m + MARGIN_USED, used + amount);
  put128(drawn->data + DRAWN_USED, get128(drawn->data + DRAWN_USED) + amount); /* at most what the account has used */
  return OK;
}

static u64 repay(const input *in) {
  if (in->len != 49) return INSTRUCTION_MALFORMED;
  if (in->count != 4) return ACCOUNTS_WRONG;
  const account *authority = in->accounts, *registry = authority + 1, *margin = authority + 2, *drawn = authority + 3;
  const u8 *account_id = in->data + 1;
  u128 amount = get128(in->data + 33);
  if (!authority->signer) return AUTHORITY_WRONG;
  if (!is_registry(registry, in->program) || !is_margin(margin, in->program, registry->key, account_id) ||
      !is_drawn(drawn, in->program, registry->key, account_id, authority->key))
    return STATE_WRONG;
  if (!amount) return AMOUNT_ZERO;
  u128 mine = get128(drawn->data + DRAWN_USED);
  if (amount > mine) return REPAID_TOO_MUCH;
  put128(drawn->data + DRAWN_USED, mine - amount);
  put128(margin->data + MARGIN_USED, get128(margin->data + MARGIN_USED) - amount);
  return OK;
}

/* Write off what a consumer drew for an account: one that cannot repay any more would leave it there for good. */
static u64 forgive(const input *in) {
  if (in->len != 65) return INSTRUCTION_MALFORMED;
  if (in->count != 5) return ACCOUNTS_WRONG;
  const account *registry = in->accounts + 1, *consumer = registry + 1, *margin = registry + 2, *drawn = registry + 3;
  const u8 *account_id = in->data + 1, *authority = in->data + 33, *s = registry->data;
  u64 now, refused;
  if (!is_registry(registry, in->program)) return STATE_WRONG;
  if ((refused = check_governance(in, registry)) || (refused = read_clock(&now))) return refused;
  if (!is_consumer(consumer, in->program, registry->key, authority) ||
      !is_margin(margin, in->program, registry->key, account_id) ||
      !is_drawn(drawn, in->program, registry->key, account_id, (const key32 *)authority))
    return STATE_WRONG;
  if (get64(consumer->data + CONSUMER_LISTED_FROM)) return LISTED_ALREADY;
  if (now < get64(consumer->data + CONSUMER_DELISTED_AT) + get64(s + REGISTRY_TIMELOCK)) return TIMELOCK_RUNNING;
  u128 amount = get128(drawn->data + DRAWN_USED);
  if (!amount) return AMOUNT_ZERO;
  put128(drawn->data + DRAWN_USED, 0);
  put128(margin->data + MARGIN_USED, get128(margin->data + MARGIN_USED) - amount);
  return OK;
}

u64 entrypoint(u8 *region) {
  account accounts[7];
  input in = {accounts, 0, 0, 0, 0};
  if (parse_input(region, &in, 7)) return ACCOUNTS_WRONG;
  if (!in.len) return INSTRUCTION_MALFORMED;
  switch (in.data[0]) {
    case 0: return init(&in);
    case 1: return post(&in);
    case 2: return verify(&in);
    case 3: return stage(&in);
    case 4: return rotate(&in);
    case 5: return schedule(&in);
    case 6: return execute(&in);
    case 7: return cancel(&in);
    case 8: return list(&in);
    case 9: return delist(&in);
    case 10: return pause(&in);
    case 11: return unpause(&in);
    case 12: return apply(&in);
    case 13: return draw(&in);
    case 14: return repay(&in);
    case 15: return forgive(&in);
    default: return INSTRUCTION_MALFORMED;
  }
}
