/* The margin registry on Solana: one certified root per epoch, and proofs against it.
 *
 * The rules are those of the EVM registry; the statement, its EIP-712 digest and the secp256k1 signatures are the
 * same bytes on every chain. Upgrade authority: none, or one that is time-locked. Consumers pin the program's and
 * the registry account's address.
 *
 * Registry account: PDA ["registry", deploymentId, destination, epochSeconds ‖ clockSkew ‖ maxLifetime (LE, 24 bytes)]
 * Anybody may initialise it: deploymentId is recomputed here from its parts, and everything else an initialiser
 * chooses is in the seeds, so that a stranger who comes first either makes the very same account or another one.
 *
 * State, 3,416 bytes, little-endian:
 *     0 discriminator "cmREGST1"   8 deploymentId 32   40 destination 32   72 domainSeparator 32
 *   104 epochSeconds u64  112 clockSkew u64  120 maxLifetime u64  128 notAfter u64
 *   136 setId u32  140 threshold u8  141 memberCount u8  142 bump u8  143 networkClass u8
 *   144 members 32 x 20 bytes (unused ones zero)
 *   784 epoch u64 (0: none yet)  792 floor u64  800 producedAt u64  808 validUntil u64  816 postedAt u64
 *   824 salt 32
 *   856 ring 64 x (epoch u64, root 32); epoch e lives in slot e % 64
 *
 * Instructions (first byte), integers little-endian unless said otherwise:
 *   0 init    networkClass u8, threshold u8, n u8, notAfter u64, salt 32, destination 32,
 *             epochSeconds u64, clockSkew u64, maxLifetime u64, members n x 20
 *             accounts: payer (signer, writable), registry (writable), system program
 *   1 post    header 100 bytes (big-endian: epoch u64, root 32, floor u64, setId u32, producedAt u64,
 *             validUntil u64, body 32), n u8, n x (index u8, r 32, vs 32)
 *             accounts: registry (writable)
 *   2 verify  leaf 188 bytes (big-endian), n u8, n x 32 sibling hashes
 *             accounts: registry
 *             return data: one byte, 1 when the leaf holds now, else 0
 *
 * Refusals are custom error codes; adapters/solana/programs.py mirrors this table.
 */
#include "sol.h"

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
  NETWORK_CLASS_UNKNOWN = 10, /* not 1 (mainnet), 2 (testnet) or 3 (devnet) */
  MEMBER_COUNT_WRONG = 11,    /* none, above 32, or below 4 outside a devnet */
  THRESHOLD_WRONG = 12,       /* below floor((n+f)/2)+1 or above n */
  MEMBER_INVALID = 13,        /* zero or repeated */
  PARAMETER_INVALID = 14,     /* epochSeconds or maxLifetime 0, notAfter past, or too far ahead outside a devnet */
  EPOCH_NOT_NEWER = 20,       /* epoch <= the last one */
  EPOCH_AHEAD = 21,           /* more than two epochs ahead of the clock */
  PRODUCED_AHEAD = 22,        /* producedAt beyond now + clockSkew */
  EXPIRED = 23,               /* validUntil <= now */
  LIFETIME_TOO_LONG = 24,     /* validUntil - producedAt above maxLifetime, or not positive */
  FLOOR_BACKWARDS = 25,       /* floor below the stored one */
  FLOOR_ABOVE_EPOCH = 26,     /* floor above the epoch it comes with */
  SET_ID_WRONG = 27,          /* another attestor set */
  SET_EXPIRED = 28,           /* the set is past its notAfter */
  ROOT_ZERO = 29,             /* an empty root */
  SIGNATURES_TOO_FEW = 30,    /* fewer than the threshold */
  SIGNER_ORDER = 31,          /* indices must strictly increase */
  SIGNER_UNKNOWN = 32,        /* index outside the member list */
  SIGNATURE_HIGH_S = 33,      /* s above half the curve order: the malleable twin */
  SIGNATURE_WRONG = 34,       /* not by the member at that index, or no signature at all */
};

enum { DEPLOYMENT = 8, DESTINATION = 40, DOMAIN = 72, EPOCH_SECONDS = 104, CLOCK_SKEW = 112, MAX_LIFETIME = 120,
       NOT_AFTER = 128, SET_ID = 136, THRESHOLD = 140, MEMBER_COUNT = 141, BUMP = 142, NETWORK_CLASS = 143,
       MEMBERS = 144, EPOCH = 784, FLOOR = 792, PRODUCED_AT = 800, VALID_UNTIL = 808, POSTED_AT = 816, SALT = 824,
       RING = 856, RING_SLOTS = 64, RING_STRIDE = 40, STATE_LEN = RING + RING_SLOTS * RING_STRIDE };
enum { MAX_MEMBERS = 32, HEADER_LEN = 100, SIGNATURE_LEN = 65, LEAF_LEN = 188, MAX_DEPTH = 32, INIT_LEN = 100,
       MAX_SET_LIFETIME = 90 * 86400 };

#define DISCRIMINATOR 0x3154534745526d63UL /* "cmREGST1" */

INLINE int is_registry(const account *a, const key32 *program) {
  if (!same32(a->owner, program) || a->data_len != STATE_LEN || get64(a->data) != DISCRIMINATOR) return 0;
  slice seeds[5] = {{"registry", 8}, {a->data + DEPLOYMENT, 32}, {a->data + DESTINATION, 32},
                    {a->data + EPOCH_SECONDS, 24}, {a->data + BUMP, 1}};
  key32 want;
  return !sol_create_program_address(seeds, 5, program, &want) && same32(&want, a->key);
}

static u64 init(const input *in) {
  const u8 *d = in->data;
  if (in->len < INIT_LEN + 1) return INSTRUCTION_MALFORMED;
  if (in->count != 3) return ACCOUNTS_WRONG;
  account *payer = in->accounts, *registry = payer + 1;
  u64 network_class = d[1], threshold = d[2], n = d[3], not_after = get64(d + 4);
  const u8 *salt = d + 12, *destination = d + 44, *parameters = d + 76, *members = d + INIT_LEN;

  if (!payer->signer || !payer->writable) return PAYER_NOT_SIGNER;
  if (!same32(payer[2].key, &SYSTEM_PROGRAM)) return SYSTEM_PROGRAM_WRONG;
  if (network_class < 1 || network_class > 3) return NETWORK_CLASS_UNKNOWN;
  if (n < 1 || n > MAX_MEMBERS || (n < 4 && network_class != 3)) return MEMBER_COUNT_WRONG;
  if (in->len != INIT_LEN + 20 * n) return INSTRUCTION_MALFORMED;
  u64 faulty = (n - 1) / 3;
  if (threshold < (n + faulty) / 2 + 1 || threshold > n) return THRESHOLD_WRONG;
  clock_sysvar clock;
  if (sol_get_clock_sysvar(&clock)) return SYSVAR_UNREADABLE;
  if (!get64(parameters) || !get64(parameters + 16) || not_after <= clock.unix_time) return PARAMETER_INVALID;
  if (network_class != 3 && not_after - clock.unix_time > MAX_SET_LIFETIME) return PARAMETER_INVALID;

  /* deploymentId = keccak256(abi.encode(networkClass, membersHash, threshold, notAfter, salt)) */
  u8 words[160], pair[64];
  word_zero(pair);
  for (u64 i = 0; i < n; i++) {
    const u8 *m = members + 20 * i;
    if (!(get64(m) | get64(m + 8) | *(const u32 *)(m + 16))) return MEMBER_INVALID;
    for (const u8 *o = members; o < m; o += 20)
      if (get64(o) == get64(m) && get64(o + 8) == get64(m + 8) && *(const u32 *)(o + 16) == *(const u32 *)(m + 16))
        return MEMBER_INVALID;
    word_zero(pair + 32);
    put64(pair + 44, get64(m));
    put64(pair + 52, get64(m + 8));
    *(u32 *)(pair + 60) = *(const u32 *)(m + 16);
    keccak(pair, 64, pair);
  }
  word_u64(words, network_class);
  copy32(words + 32, pair);
  word_u64(words + 64, threshold);
  word_u64(words + 96, not_after);
  copy32(words + 128, salt);
  u8 deployment[32], bump;
  keccak(words, 160, deployment);

  slice seeds[5] = {{"registry", 8}, {deployment, 32}, {destination, 32}, {parameters, 24}, {&bump, 1}};
  key32 want;
  if (sol_try_find_program_address(seeds, 4, in->program, &want, &bump) || !same32(&want, registry->key))
    return ADDRESS_WRONG;
  if (registry->data_len || !same32(registry->owner, &SYSTEM_PROGRAM)) return ALREADY_INITIALISED;
  signer_seeds signer = {seeds, 5};
  if (create_pda(in, registry, STATE_LEN, in->program, &signer)) return SYSVAR_UNREADABLE;

  u8 *s = registry->data;
  put64(s, DISCRIMINATOR);
  copy32(s + DEPLOYMENT, deployment);
  copy32(s + DESTINATION, destination);
  KECCAK_TEXT("EIP712Domain(string name,string version,bytes32 salt)", words);
  KECCAK_TEXT("crossmargin", words + 32);
  KECCAK_TEXT("1", words + 64);
  copy32(words + 96, deployment);
  keccak(words, 128, s + DOMAIN);
  sol_memcpy_(s + EPOCH_SECONDS, parameters, 24);
  put64(s + NOT_AFTER, not_after);
  *(u32 *)(s + SET_ID) = 1;
  s[THRESHOLD] = (u8)threshold;
  s[MEMBER_COUNT] = (u8)n;
  s[BUMP] = bump;
  s[NETWORK_CLASS] = (u8)network_class;
  sol_memcpy_(s + MEMBERS, members, 20 * n);
  copy32(s + SALT, salt);
  return OK;
}

/* Is the 32-byte big-endian s at most half the order of secp256k1 (SEC 2, 2.4.1)? */
INLINE int is_low_s(const u8 *s) {
  static const u64 HALF[4] = {0x7fffffffffffffffUL, 0xffffffffffffffffUL, 0x5d576e7357a4501dUL, 0xdfe92f46681b20a0UL};
  for (u64 i = 0; i < 4; i++) {
    u64 v = get64be(s + 8 * i);
    if (v != HALF[i]) return v < HALF[i];
  }
  return 1;
}

static u64 post(const input *in) {
  const u8 *h = in->data + 1, *sig = h + HEADER_LEN + 1;
  if (in->len < 1 + HEADER_LEN + 1) return INSTRUCTION_MALFORMED;
  u64 n = h[HEADER_LEN];
  if (in->len != 1 + HEADER_LEN + 1 + n * SIGNATURE_LEN) return INSTRUCTION_MALFORMED;
  if (in->count != 1) return ACCOUNTS_WRONG;
  const account *registry = in->accounts;
  if (!registry->writable || !is_registry(registry, in->program)) return STATE_WRONG;
  u8 *s = registry->data;
  clock_sysvar clock;
  if (sol_get_clock_sysvar(&clock)) return SYSVAR_UNREADABLE;
  u64 now = clock.unix_time;

  u64 epoch = get64be(h), floor = get64be(h + 40), set_id = get32be(h + 48), produced_at = get64be(h + 52),
      valid_until = get64be(h + 60);
  const u8 *root = h + 8, *body = h + 68;
  if (epoch <= get64(s + EPOCH)) return EPOCH_NOT_NEWER;
  if (epoch > now / get64(s + EPOCH_SECONDS) + 2) return EPOCH_AHEAD;
  if (produced_at > now && produced_at - now > get64(s + CLOCK_SKEW)) return PRODUCED_AHEAD;
  if (valid_until <= now) return EXPIRED;
  if (valid_until <= produced_at || valid_until - produced_at > get64(s + MAX_LIFETIME)) return LIFETIME_TOO_LONG;
  if (floor < get64(s + FLOOR)) return FLOOR_BACKWARDS;
  if (floor > epoch) return FLOOR_ABOVE_EPOCH;
  if (set_id != *(const u32 *)(s + SET_ID)) return SET_ID_WRONG;
  if (now > get64(s + NOT_AFTER)) return SET_EXPIRED;
  if (zero32(root)) return ROOT_ZERO;
  if (n < s[THRESHOLD]) return SIGNATURES_TOO_FEW;

  u8 words[256], packed[66], digest[32];
  KECCAK_TEXT("MarginStatement(uint64 epoch,bytes32 root,uint64 floor,uint32 setId,uint64 producedAt,"
              "uint64 validUntil,bytes32 body)", words);
  word_u64(words + 32, epoch);
  copy32(words + 64, root);
  word_u64(words + 96, floor);
  word_u64(words + 128, set_id);
  word_u64(words + 160, produced_at);
  word_u64(words + 192, valid_until);
  copy32(words + 224, body);
  packed[0] = 0x19;
  packed[1] = 0x01;
  copy32(packed + 2, s + DOMAIN);
  keccak(words, 256, packed + 34);
  keccak(packed, 66, digest);

  for (u64 i = 0, next = 0; i < n; i++, sig += SIGNATURE_LEN) {
    u64 index = sig[0];
    if (index < next) return SIGNER_ORDER;
    if (index >= s[MEMBER_COUNT]) return SIGNER_UNKNOWN;
    next = index + 1;
    /* EIP-2098: the top bit of vs is the recovery id */
    u8 rs[64], public_key[64], hash[32];
    copy32(rs, sig + 1);
    copy32(rs + 32, sig + 33);
    u64 recovery = rs[32] >> 7;
    rs[32] &= 0x7f;
    if (!is_low_s(rs + 32)) return SIGNATURE_HIGH_S;
    if (sol_secp256k1_recover(digest, recovery, rs, public_key)) return SIGNATURE_WRONG;
    keccak(public_key, 64, hash);
    const u8 *member = s + MEMBERS + 20 * index;
    if (get64(hash + 12) != get64(member) || get64(hash + 20) != get64(member + 8) ||
        *(const u32 *)(hash + 28) != *(const u32 *)(member + 16))
      return SIGNATURE_WRONG;
  }

  put64(s + EPOCH, epoch);
  put64(s + FLOOR, floor);
  put64(s + PRODUCED_AT, produced_at);
  put64(s + VALID_UNTIL, valid_until);
  put64(s + POSTED_AT, now);
  u8 *slot = s + RING + RING_STRIDE * (epoch % RING_SLOTS);
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

static u64 verify(const input *in) {
  const u8 *leaf = in->data + 1, *proof = leaf + LEAF_LEN + 1;
  if (in->len < 1 + LEAF_LEN + 1) return INSTRUCTION_MALFORMED;
  u64 depth = leaf[LEAF_LEN];
  if (depth > MAX_DEPTH || in->len != 1 + LEAF_LEN + 1 + 32 * depth) return INSTRUCTION_MALFORMED;
  if (in->count != 1) return ACCOUNTS_WRONG;
  if (!is_registry(in->accounts, in->program)) return STATE_WRONG;
  const u8 *s = in->accounts->data;
  clock_sysvar clock;
  if (sol_get_clock_sysvar(&clock)) return SYSVAR_UNREADABLE;
  u64 now = clock.unix_time, last = get64(s + EPOCH);

  u64 epoch = get64be(leaf + 64), valid_until = get64be(leaf + 176);
  const u8 *slot = s + RING + RING_STRIDE * (epoch % RING_SLOTS);
  u8 holds = same32(leaf + 32, s + DESTINATION) && epoch && epoch >= get64(s + FLOOR) && epoch <= last &&
             last - epoch < RING_SLOTS && get64(slot) == epoch && now < valid_until &&
             (epoch != last || now < get64(s + VALID_UNTIL));

  if (holds) {
    u8 words[384], node[32];
    slice pair[2] = {{node, 32}, {proof, 32}};
    copy32(words, leaf);
    copy32(words + 32, leaf + 32);
    word_u64(words + 64, epoch);
    word_128(words + 96, leaf + 72, 1); /* equity, the only signed value */
    for (u64 i = 0; i < 5; i++) word_128(words + 128 + 32 * i, leaf + 88 + 16 * i, 0);
    word_u64(words + 288, get64be(leaf + 168)); /* asOf */
    word_u64(words + 320, valid_until);
    word_u64(words + 352, get32be(leaf + 184)); /* flags */
    keccak(words, 384, node);
    keccak(node, 32, node);
    for (u64 i = 0; i < depth; i++, proof += 32) {
      int first = below32(node, proof);
      pair[0].at = first ? node : proof;
      pair[1].at = first ? proof : node;
      sol_keccak256(pair, 2, node);
    }
    holds = (u8)same32(node, slot + 8);
  }
  sol_set_return_data(&holds, 1);
  return OK;
}

u64 entrypoint(u8 *region) {
  account accounts[3];
  input in = {accounts, 0, 0, 0, 0};
  if (parse_input(region, &in, 3)) return ACCOUNTS_WRONG;
  if (!in.len) return INSTRUCTION_MALFORMED;
  switch (in.data[0]) {
    case 0: return init(&in);
    case 1: return post(&in);
    case 2: return verify(&in);
    default: return INSTRUCTION_MALFORMED;
  }
}
