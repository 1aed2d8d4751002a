/* The registry account as other programs read it, and whether a quorum of attestors signed something.
 *
 * registry.c and vault.c include this. Everything here takes `state`, the data of a registry account. Whether an
 * account is one, the caller must know before: `is_registry_data` looks at its size and discriminator; owner and
 * address are the caller's. registry.c derives the address from the seeds in the state; another program pins the
 * account's key, and an account at a pinned program-derived address has one owner for ever.
 *
 * State, 4,224 bytes, little-endian:
 *     0 discriminator "cmREGST2"   8 deploymentId 32   40 destination 32   72 domainSeparator 32
 *   104 epochSeconds u64  112 clockSkew u64  120 maxLifetime u64  128 timelock u64   (seconds)
 *   136 governance 32   168 guardian 32 (zero: none)   200 salt 32
 *   232 networkClass u8   233 bump u8   234 zero 6
 *   240 epoch u64 (0: none yet)  248 floor u64  256 producedAt u64  264 validUntil u64  272 postedAt u64
 *   280 pausedFrom u64   288 pausedUntil u64   (0, 0: never paused)
 *   296 recoveryAt u64 (0: none scheduled)   304 recoveryDigest 32
 *   336 older set 664 (set id 0: none)   1000 newest set 664
 *  1664 ring 64 x (epoch u64, root 32); epoch e lives in slot e % 64
 *
 * Set, 664 bytes:
 *     0 setId u32   4 threshold u8   5 memberCount u8   6 zero 2   8 activationEpoch u64   16 notAfter u64
 *    24 members 32 x 20 (unused ones zero)
 * The epoch alone decides which of the two sets must have signed: the newest from its activation epoch on, the older
 * one before. So no set has to be promoted when its epoch comes.
 */
#ifndef CROSSMARGIN_QUORUM_H
#define CROSSMARGIN_QUORUM_H
#include "sol.h"

/* Custom error codes 30 to 39 of every program that includes this. */
enum quorum_refusal {
  SIGNATURES_TOO_FEW = 30,  /* fewer than the threshold */
  SIGNER_ORDER = 31,        /* indices must strictly increase */
  SIGNER_UNKNOWN = 32,      /* index outside the member list */
  SIGNATURE_HIGH_S = 33,    /* s above half the curve order: the malleable twin */
  SIGNATURE_WRONG = 34,     /* not by the member at that index, or no signature at all */
  SET_EXPIRED = 35,         /* the set is past its notAfter */
  SET_UNKNOWN = 36,         /* the epoch is before the older of the two sets */
  EPOCH_AHEAD = 37,         /* more than two epochs ahead of the clock */
  EPOCH_BELOW_FLOOR = 38,   /* signed for an epoch that a later statement voided */
  SET_SUPERSEDED = 39,      /* the set handed over: an epoch of the next is posted, or its activation two epochs back */
};

enum { REGISTRY_DEPLOYMENT = 8, REGISTRY_DESTINATION = 40, REGISTRY_DOMAIN = 72, REGISTRY_EPOCH_SECONDS = 104,
       REGISTRY_CLOCK_SKEW = 112, REGISTRY_MAX_LIFETIME = 120, REGISTRY_TIMELOCK = 128, REGISTRY_GOVERNANCE = 136,
       REGISTRY_GUARDIAN = 168, REGISTRY_SALT = 200, REGISTRY_NETWORK_CLASS = 232, REGISTRY_BUMP = 233,
       REGISTRY_EPOCH = 240, REGISTRY_FLOOR = 248, REGISTRY_PRODUCED_AT = 256, REGISTRY_VALID_UNTIL = 264,
       REGISTRY_POSTED_AT = 272, REGISTRY_PAUSED_FROM = 280, REGISTRY_PAUSED_UNTIL = 288, REGISTRY_RECOVERY_AT = 296,
       REGISTRY_RECOVERY_DIGEST = 304, REGISTRY_OLDER_SET = 336, REGISTRY_NEWEST_SET = 1000, REGISTRY_RING = 1664,
       RING_SLOTS = 64, RING_STRIDE = 40, REGISTRY_LEN = REGISTRY_RING + RING_SLOTS * RING_STRIDE };
enum { SET_ID = 0, SET_THRESHOLD = 4, SET_COUNT = 5, SET_ACTIVATION = 8, SET_NOT_AFTER = 16, SET_MEMBERS = 24,
       MAX_MEMBERS = 32, SET_LEN = SET_MEMBERS + 20 * MAX_MEMBERS };
enum { SIGNATURE_LEN = 65, EPOCHS_AHEAD = 2 };

#define REGISTRY_DISCRIMINATOR 0x3254534745526d63UL /* "cmREGST2" */

/* Is this the data of a registry? Its owner and address are the caller's to check. */
INLINE int is_registry_data(const u8 *data, u64 len) {
  return len == REGISTRY_LEN && get64(data) == REGISTRY_DISCRIMINATOR;
}

/* The epoch of a moment by the registry's clock. */
INLINE u64 epoch_at(const u8 *state, u64 now) { return now / get64(state + REGISTRY_EPOCH_SECONDS); }

/* The set that an epoch demands, 0 when it is not known any more. */
INLINE const u8 *find_set(const u8 *state, u64 epoch) {
  const u8 *newest = state + REGISTRY_NEWEST_SET, *older = state + REGISTRY_OLDER_SET;
  if (epoch >= get64(newest + SET_ACTIVATION)) return newest;
  return *(const u32 *)older && epoch >= get64(older + SET_ACTIVATION) ? older : 0;
}

/* Did `set`, one of the two, hand over? Whoever takes the keys of a set afterwards could still sign for an epoch from
 * before. So its signatures count until an epoch of the next one is posted here, and at most EPOCHS_AHEAD epochs past
 * the activation, for what is under way then. */
INLINE int is_superseded(const u8 *state, const u8 *set, u64 now) {
  const u8 *newest = state + REGISTRY_NEWEST_SET;
  u64 activation = get64(newest + SET_ACTIVATION);
  return set != newest &&
         (activation <= get64(state + REGISTRY_EPOCH) || activation + EPOCHS_AHEAD <= epoch_at(state, now));
}

/* The EIP-712 digest, in the deployment's domain, of the struct whose `len` bytes of words begin with its type hash. */
INLINE void typed_digest(const u8 *state, const u8 *words, u64 len, u8 *digest) {
  u8 packed[66];
  packed[0] = 0x19;
  packed[1] = 0x01;
  copy32(packed + 2, state + REGISTRY_DOMAIN);
  keccak(words, len, packed + 34);
  keccak(packed, 66, digest);
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

INLINE int same20(const void *a, const void *b) {
  const u8 *x = a, *y = b;
  return get64(x) == get64(y) && get64(x + 8) == get64(y + 8) && *(const u32 *)(x + 16) == *(const u32 *)(y + 16);
}

/* Did a quorum of `set` sign `digest`? signatures: n x (index u8, r 32, vs 32). Returns 0 or a quorum_refusal. */
static u64 verify_signatures(const u8 *set, const u8 *digest, u64 now, u64 n, const u8 *signatures) {
  if (now > get64(set + SET_NOT_AFTER)) return SET_EXPIRED;
  if (n < set[SET_THRESHOLD]) return SIGNATURES_TOO_FEW;
  for (u64 i = 0, next = 0; i < n; i++, signatures += SIGNATURE_LEN) {
    u64 index = signatures[0];
    if (index < next) return SIGNER_ORDER;
    if (index >= set[SET_COUNT]) return SIGNER_UNKNOWN;
    next = index + 1;
    /* EIP-2098: the top bit of vs is the recovery id */
    u8 rs[64], public_key[64], hash[32];
    copy32(rs, signatures + 1);
    copy32(rs + 32, signatures + 33);
    u64 recovery = rs[32] >> 7;
    rs[32] &= 0x7f;
    if (!is_low_s(rs + 32)) return SIGNATURE_HIGH_S;
    if (sol_secp256k1_recover(digest, recovery, rs, public_key)) return SIGNATURE_WRONG;
    keccak(public_key, 64, hash);
    if (!same20(hash + 12, set + SET_MEMBERS + 20 * index)) return SIGNATURE_WRONG;
  }
  return 0;
}

/* Did a quorum of the set that `epoch` demands sign `digest`, for an epoch that still counts?
 *
 * now: the clock's Unix seconds. The digest must bind the epoch, or a signer could choose the set. The caller checks
 * that `signatures` holds n x SIGNATURE_LEN bytes. Returns 0 or a quorum_refusal. */
static u64 verify_quorum(const u8 *state, const u8 *digest, u64 epoch, u64 now, u64 n, const u8 *signatures) {
  if (epoch > epoch_at(state, now) + EPOCHS_AHEAD) return EPOCH_AHEAD;
  if (epoch < get64(state + REGISTRY_FLOOR)) return EPOCH_BELOW_FLOOR;
  const u8 *set = find_set(state, epoch);
  if (!set) return SET_UNKNOWN;
  if (is_superseded(state, set, now)) return SET_SUPERSEDED;
  return verify_signatures(set, digest, now, n, signatures);
}
#endif
