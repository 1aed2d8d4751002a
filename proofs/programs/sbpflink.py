"""Lay out one clang `-target bpfel` object as an sBPF v3 program file.

The v3 format (SIMD-0178, SIMD-0189; anza-xyz/sbpf `src/elf.rs`) needs no sections, symbols or dynamic relocations:
an ELF header and two load segments, read-only data at address 0 and code at 1 << 32. A syscall is a call whose
immediate is the murmur3 hash of its name and whose source register is 0; a call inside the program has source
register 1 and a relative immediate.

`link` is pure: object bytes in, program bytes out. It refuses what would only fail when executed: unknown syscalls,
writable data, and instructions outside the v3 set.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

CODE_BASE = 1 << 32
WORD = 8
SHF_ALLOC = 2

# Relocation types of LLVM's BPF backend
R_BPF_64_64, R_BPF_64_ABS64, R_BPF_64_32 = 1, 2, 10

OP_LOAD_WIDE, OP_CALL, OP_BIG_ENDIAN = 0x18, 0x85, 0xDC
CLASS_MASK, CLASS_ALU32, CLASS_JUMP32, CLASS_STORE_REGISTER = 0x07, 0x04, 0x06, 0x03
MODE_MASK, MODE_ATOMIC = 0xE0, 0xC0

# The runtime reports an unknown name only when the call is reached, so the known ones are listed.
SYSCALLS = frozenset(
    {
        "sol_keccak256",
        "sol_secp256k1_recover",
        "sol_create_program_address",
        "sol_try_find_program_address",
        "sol_invoke_signed_c",
        "sol_get_clock_sysvar",
        "sol_get_rent_sysvar",
        "sol_set_return_data",
        "sol_memcpy_",
        "sol_memset_",
    }
)


class LinkError(ValueError):
    """The object cannot become a program; the message names the section, symbol or instruction."""


@dataclass
class Layout:
    """Where each input section went: bytes of the two output segments and, per section index, its address."""

    code: bytearray
    code_section: int
    # A first zero word, so that no object has the address NULL.
    constants: bytearray = field(default_factory=lambda: bytearray(WORD))
    address: dict[int, int] = field(default_factory=dict)


def murmur3(name: bytes) -> int:
    """Return the 32-bit murmur3 hash of `name` with seed 0 (Appleby, MurmurHash3_x86_32)."""
    mask = 0xFFFFFFFF

    def rotate(x: int, by: int) -> int:
        return (x << by | x >> (32 - by)) & mask

    def scramble(block: bytes) -> int:
        return rotate(int.from_bytes(block, "little") * 0xCC9E2D51 & mask, 15) * 0x1B873593 & mask

    h = 0
    whole = len(name) // 4 * 4
    for i in range(0, whole, 4):
        h = (rotate(h ^ scramble(name[i : i + 4]), 13) * 5 + 0xE6546B64) & mask
    h ^= scramble(name[whole:]) if name[whole:] else 0
    h ^= len(name)
    h = (h ^ h >> 16) * 0x85EBCA6B & mask
    h = (h ^ h >> 13) * 0xC2B2AE35 & mask
    return h ^ h >> 16


def link(obj: bytes, entry: str = "entrypoint") -> bytes:
    """Return the program file for the relocatable object `obj`, which starts at the function `entry`.

    Raises LinkError.
    """
    elf = ELFFile(io.BytesIO(obj))
    if elf["e_machine"] != "EM_BPF" or not elf.little_endian or elf["e_type"] != "ET_REL":
        raise LinkError("object: not a relocatable little-endian BPF object; compile with -target bpfel -c")
    layout = _lay_out(elf)
    symbols = elf.get_section_by_name(".symtab")
    if not isinstance(symbols, SymbolTableSection):
        raise LinkError(".symtab: missing")
    calls = _relocate(elf, layout, symbols)
    _check_code(layout.code, calls)
    start = next((s for s in symbols.iter_symbols() if s.name == entry and s["st_shndx"] == layout.code_section), None)
    if start is None:
        raise LinkError(f"{entry}: not defined in .text")
    return _file(bytes(layout.constants), bytes(layout.code), CODE_BASE + start["st_value"])


def _lay_out(elf: ELFFile) -> Layout:
    layout: Layout | None = None
    for index, section in enumerate(elf.iter_sections()):
        if section.name == ".text":
            layout = Layout(bytearray(section.data()), index)
            layout.address[index] = CODE_BASE
    if layout is None:
        raise LinkError(".text: missing")
    for index, section in enumerate(elf.iter_sections()):
        if not section["sh_flags"] & SHF_ALLOC or not section["sh_size"] or index == layout.code_section:
            continue
        if not section.name.startswith((".rodata", ".data.rel.ro")):
            raise LinkError(f"{section.name}: a program has no writable data and one code section")
        step = max(WORD, section["sh_addralign"])
        layout.constants += bytes(-len(layout.constants) % step)
        layout.address[index] = len(layout.constants)
        layout.constants += section.data()
    layout.constants += bytes(-len(layout.constants) % WORD)
    return layout


def _relocate(elf: ELFFile, layout: Layout, symbols: SymbolTableSection) -> set[int]:
    """Patch every reference in place. Return the offsets in the code of the calls settled here."""
    settled: set[int] = set()
    for table in elf.iter_sections():
        if not isinstance(table, RelocationSection) or table["sh_info"] not in layout.address:
            continue
        if table.is_RELA():
            raise LinkError(f"{table.name}: relocations with addends are not expected from this target")
        in_code = table["sh_info"] == layout.code_section
        data, base = (layout.code, 0) if in_code else (layout.constants, layout.address[table["sh_info"]])
        for entry in table.iter_relocations():
            at, kind = base + entry["r_offset"], entry["r_info_type"]
            symbol = symbols.get_symbol(entry["r_info_sym"])
            where = layout.address.get(symbol["st_shndx"])
            target = None if where is None else where + symbol["st_value"]
            if kind == R_BPF_64_32 and in_code and data[at] == OP_CALL:
                _settle_call(data, at, symbol.name, target)
                settled.add(at)
            elif target is None:
                raise LinkError(f"{symbol.name}: undefined, or in a section that is not loaded")
            elif kind == R_BPF_64_64 and in_code and data[at] == OP_LOAD_WIDE:
                low, high = struct.unpack_from("<I", data, at + 4)[0], struct.unpack_from("<I", data, at + 12)[0]
                value = target + (high << 32 | low)
                struct.pack_into("<I", data, at + 4, value & 0xFFFFFFFF)
                struct.pack_into("<I", data, at + 12, value >> 32)
            elif kind == R_BPF_64_ABS64 and not in_code:
                struct.pack_into("<Q", data, at, target + struct.unpack_from("<Q", data, at)[0])
            else:
                raise LinkError(f"{table.name} at {at:#x}: relocation type {kind} is not supported")
    return settled


def _settle_call(code: bytearray, at: int, name: str, target: int | None) -> None:
    if target is None:
        if name not in SYSCALLS:
            raise LinkError(f"{name}: neither defined nor a listed syscall")
        struct.pack_into("<I", code, at + 4, murmur3(name.encode()))
        code[at + 1] &= 0x0F
        return
    if target < CODE_BASE:
        raise LinkError(f"{name}: called, but it is data")
    # clang leaves (offset inside the section) / 8 - 1 in the immediate when it names the section, -1 for a symbol
    inside = struct.unpack_from("<i", code, at + 4)[0] + 1
    struct.pack_into("<i", code, at + 4, (target - CODE_BASE + inside * WORD - at - WORD) // WORD)
    code[at + 1] = code[at + 1] & 0x0F | 0x10


def _check_code(code: bytearray, settled: set[int]) -> None:
    """Mark the calls clang resolved itself as internal; refuse instructions that v3 does not have."""
    at = 0
    while at < len(code):
        op = code[at]
        kind = op & CLASS_MASK
        if op == OP_CALL and at not in settled:
            code[at + 1] = code[at + 1] & 0x0F | 0x10
        elif kind == CLASS_JUMP32 or (kind == CLASS_ALU32 and op != OP_BIG_ENDIAN):
            # sBPF sign-extends some 32-bit results where clang expects zeros
            raise LinkError(f"code at {at:#x}: 32-bit instruction {op:#x}; compile with -mcpu=v2")
        elif kind == CLASS_STORE_REGISTER and op & MODE_MASK == MODE_ATOMIC:
            raise LinkError(f"code at {at:#x}: atomic instruction {op:#x}")
        at += 2 * WORD if op == OP_LOAD_WIDE else WORD


def _file(constants: bytes, code: bytes, start: int) -> bytes:
    header, segment = 64, 56
    offset = header + 2 * segment

    def load(flags: int, at: int, address: int, size: int) -> bytes:
        return struct.pack("<IIQQQQQQ", 1, flags, at, address, address, size, size, WORD)

    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    fields = (3, 247, 1, start, header, 0, 3, header, segment, 2, 0, 0, 0)  # ET_DYN, EM_BPF, ..., e_flags 3: sBPF v3
    return (
        identity
        + struct.pack("<HHIQQQIHHHHHH", *fields)
        + load(4, offset, 0, len(constants))
        + load(1, offset + len(constants), CODE_BASE, len(code))
        + constants
        + code
    )
