/* The part of the Solana program ABI that our programs use.
 *
 * Sources: the runtime's serialisation of accounts for "aligned" loaders and its C syscall signatures
 * (anza-xyz/agave, program-runtime/src/serialization.rs and syscalls/src/lib.rs).
 *
 * Compiled for `-target bpfel -mcpu=v2` with strict aliasing off: the VM loads unaligned words, and this header
 * relies on it. Writing memcpy by the book would make clang load byte by byte.
 */
#ifndef CROSSMARGIN_SOL_H
#define CROSSMARGIN_SOL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef unsigned __int128 u128;
typedef struct { u8 bytes[32]; } key32;

_Static_assert(sizeof(u32) == 4 && sizeof(u64) == 8, "the target must be a 64-bit one");

#define INLINE static inline __attribute__((always_inline))

/* ---- what syscalls take and give ---- */
typedef struct { const void *at; u64 len; } slice;
typedef struct { const slice *seeds; u64 count; } signer_seeds;
typedef struct { const key32 *key; u8 writable, signer; } meta;
typedef struct { const key32 *program; const meta *metas; u64 meta_count; const u8 *data; u64 data_len; } instruction;
typedef struct {
  const key32 *key;
  u64 *lamports;
  u64 data_len; /* a copy: refresh it from the word before `data` after a CPI that allocates */
  u8 *data;
  const key32 *owner;
  u64 rent_epoch;
  u8 signer, writable, executable;
} account;
typedef struct { u64 slot, epoch_start, epoch, leader_epoch, unix_time; } clock_sysvar;
typedef struct { u64 lamports_per_byte, threshold_f64, burn_percent; } rent_sysvar;

extern u64 sol_keccak256(const slice *, u64, u8 *);
extern u64 sol_secp256k1_recover(const u8 *hash, u64 recovery_id, const u8 *signature64, u8 *public_key64);
extern u64 sol_create_program_address(const slice *, u64, const key32 *program, key32 *);
extern u64 sol_try_find_program_address(const slice *, u64, const key32 *program, key32 *, u8 *bump);
extern u64 sol_invoke_signed_c(const instruction *, const account *, u64, const signer_seeds *, u64);
extern u64 sol_get_clock_sysvar(clock_sysvar *);
extern u64 sol_get_rent_sysvar(rent_sysvar *);
extern u64 sol_set_return_data(const u8 *, u64);
extern u64 sol_memcpy_(void *, const void *, u64);
extern u64 sol_memset_(void *, u8, u64);

/* clang emits calls to these for large initialisers and copies */
void *memcpy(void *to, const void *from, u64 n) { sol_memcpy_(to, from, n); return to; }
void *memset(void *to, int value, u64 n) { sol_memset_(to, (u8)value, n); return to; }

/* ---- words ---- */
INLINE u64 get64(const void *p) { return *(const u64 *)p; }
INLINE void put64(void *p, u64 v) { *(u64 *)p = v; }
INLINE u64 get64be(const void *p) { return __builtin_bswap64(get64(p)); }
INLINE u128 get128(const void *p) { return (u128)get64((const u8 *)p + 8) << 64 | get64(p); }
INLINE void put128(void *p, u128 v) { put64(p, (u64)v); put64((u8 *)p + 8, (u64)(v >> 64)); }
INLINE u32 get32be(const void *p) { return __builtin_bswap32(*(const u32 *)p); }
INLINE int same32(const void *a, const void *b) {
  const u64 *x = a, *y = b;
  return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}
INLINE int zero32(const void *a) {
  const u64 *x = a;
  return (x[0] | x[1] | x[2] | x[3]) == 0;
}
INLINE void copy32(void *to, const void *from) {
  u64 *x = to;
  const u64 *y = from, a = y[0], b = y[1], c = y[2], d = y[3];
  x[0] = a; x[1] = b; x[2] = c; x[3] = d;
}
/* ABI words: 32 bytes, big-endian */
INLINE void word_zero(u8 *w) { u64 *x = (u64 *)w; x[0] = x[1] = x[2] = x[3] = 0; }
INLINE void word_u64(u8 *w, u64 v) { word_zero(w); put64(w + 24, __builtin_bswap64(v)); }
INLINE void keccak(const void *p, u64 n, u8 *out) { slice s = {p, n}; sol_keccak256(&s, 1, out); }
INLINE void keccak_text(const char *text, u64 n, u8 *out) { keccak(text, n, out); }
#define KECCAK_TEXT(literal, out) keccak_text(literal, sizeof(literal) - 1, out)

/* ---- the input region ---- */
typedef struct { account *accounts; u64 count; const u8 *data; u64 len; const key32 *program; } input;

/* Parse the region at `in` into at most `most` accounts. Return 0, or 1 when there are more. */
INLINE u64 parse_input(u8 *in, input *out, u64 most) {
  u64 n = get64(in);
  in += 8;
  if (n > most) return 1;
  for (u64 i = 0; i < n; i++) {
    account *a = out->accounts + i;
    if (in[0] != 0xff) { /* the same account again: its index, then padding */
      *a = out->accounts[in[0]];
      in += 8;
      continue;
    }
    a->signer = in[1];
    a->writable = in[2];
    a->executable = in[3];
    a->key = (const key32 *)(in + 8);
    a->owner = (const key32 *)(in + 40);
    a->lamports = (u64 *)(in + 72);
    a->data_len = get64(in + 80);
    a->data = in + 88;
    in += 88 + a->data_len + 10240; /* room to grow, then padding to eight bytes */
    in = (u8 *)(((u64)in + 7) & ~7UL);
    a->rent_epoch = get64(in);
    in += 8;
  }
  out->count = n;
  out->len = get64(in);
  out->data = in + 8;
  out->program = (const key32 *)(in + 8 + out->len);
  return 0;
}

/* ---- program-derived accounts ---- */
static const key32 SYSTEM_PROGRAM = {{0}};

/* Lamports that keep `space` bytes, or 0 when the rent rule is one this program does not know. */
INLINE u64 rent_floor(u64 space) {
  rent_sysvar rent;
  if (sol_get_rent_sysvar(&rent)) return 0;
  u64 per = (space + 128) * rent.lamports_per_byte;
  if (rent.threshold_f64 == 0x4000000000000000UL) return per * 2; /* 2.0 years, the rule until SIMD-0194 */
  if (rent.threshold_f64 == 0x3ff0000000000000UL) return per;     /* 1.0, the rule after it */
  return 0;
}

/* The seeds of a program-derived address; `bump` is the last one. */
typedef struct { slice seeds[8]; u64 count; u8 bump; } pda;

/* Nothing but lamports was ever put at this address. */
INLINE int is_untouched(const account *a) { return !a->data_len && same32(a->owner, &SYSTEM_PROGRAM); }

INLINE int is_state_of(const account *a, const key32 *program, u64 len, u64 discriminator) {
  return same32(a->owner, program) && a->data_len == len && get64(a->data) == discriminator;
}

/* Is `a` at the address of these seeds and this bump? */
static u64 is_at(pda *p, u8 bump, const account *a, const key32 *program) {
  key32 want;
  p->bump = bump;
  p->seeds[p->count] = (slice){&p->bump, 1};
  return !sol_create_program_address(p->seeds, p->count + 1, program, &want) && same32(&want, a->key);
}

/* Is `a` at the canonical address of these seeds? Sets the bump. */
static u64 is_at_canonical(pda *p, const account *a, const key32 *program) {
  key32 want;
  p->seeds[p->count] = (slice){&p->bump, 1};
  return !sol_try_find_program_address(p->seeds, p->count, program, &want, &p->bump) && same32(&want, a->key);
}

/* Make the PDA `target` an account of `space` zero bytes owned by `owner`; the first account pays.
 *
 * By transfer, allocate and assign: create_account refuses an address that already has lamports, so anybody could
 * block it by sending one. A CPI that fails ends the transaction; the caller does not see it.
 * Return 0, or 1 when the rent rule is unknown. */
static u64 create_pda(const input *in, account *target, u64 space, const key32 *owner, const signer_seeds *seeds) {
  u8 data[36];
  u64 needed = rent_floor(space);
  if (!needed) return 1;
  meta both[2] = {{in->accounts->key, 1, 1}, {target->key, 1, 0}};
  if (*target->lamports < needed) {
    *(u32 *)data = 2; /* Transfer */
    put64(data + 4, needed - *target->lamports);
    instruction transfer = {&SYSTEM_PROGRAM, both, 2, data, 12};
    sol_invoke_signed_c(&transfer, in->accounts, in->count, 0, 0);
  }
  both[1].signer = 1;
  *(u32 *)data = 8; /* Allocate */
  put64(data + 4, space);
  instruction allocate = {&SYSTEM_PROGRAM, both + 1, 1, data, 12};
  sol_invoke_signed_c(&allocate, in->accounts, in->count, seeds, 1);
  target->data_len = get64(target->data - 8); /* or the next CPI would hand the runtime an account cut to nothing */
  *(u32 *)data = 1; /* Assign */
  copy32(data + 4, owner);
  instruction assign = {&SYSTEM_PROGRAM, both + 1, 1, data, 36};
  sol_invoke_signed_c(&assign, in->accounts, in->count, seeds, 1);
  return 0;
}
#endif
