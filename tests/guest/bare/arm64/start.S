// Entry of the bare-metal guest: an arm64 Image header, code with the MMU off, then the MMU on.
//
// Nothing is written to memory before the MMU is on, tables included: they are link-time constants, so no
// cache maintenance is needed.

#define ALIAS_INDEX 256         // GiB 256 maps the RAM again, readable and executable at EL0

    .section .head, "ax"
    .global _start
_start:
    b   boot_code               // code0
    .long 0                     // code1
    .quad 0                     // text_offset
    .quad image_size
    .quad 0xa                   // flags: little endian, 4 KiB pages, anywhere in RAM
    .quad 0, 0, 0
    .ascii "ARM\x64"
    .long 0

    .text
    // A short program whose every step has a known result, for stepping with the MMU off.
    .global boot_code, boot_loop, boot_loop_end
boot_code:
    mov x19, x0                 // device tree
    mov x1, #0
    mov x2, #5
boot_loop:
    add x1, x1, x2
    subs x2, x2, #1
    b.ne boot_loop
boot_loop_end:                  // x1 = 15
    mov x20, #0                 // index of this CPU
    b   mmu_enable

    // PSCI CPU_ON enters here with the index in x0.
    .global secondary_start
secondary_start:
    mov x20, x0

    .global mmu_enable, mmu_is_on
mmu_enable:
    adrp x0, vectors
    add x0, x0, :lo12:vectors
    msr vbar_el1, x0
    mov x0, #(3 << 20)          // CPACR_EL1.FPEN: no trap of FP and SIMD
    msr cpacr_el1, x0
    ldr x0, =0x00000000000000ff // MAIR: 0 normal write-back, 1 device nGnRnE
    msr mair_el1, x0
    // TCR: T0SZ 25 (39 bits, level 1 first), inner shareable write-back, EPD1, IPS 40 bits
    ldr x0, =((2 << 32) | (1 << 23) | (3 << 12) | (1 << 10) | (1 << 8) | 25)
    msr tcr_el1, x0
    adrp x0, level1
    msr ttbr0_el1, x0
    isb
    mrs x0, sctlr_el1
    mov x1, #0x1005             // I, C, M
    orr x0, x0, x1
    msr sctlr_el1, x0
    isb
mmu_is_on:
    adrp x0, stacks
    add x1, x20, #1
    lsl x1, x1, #14
    add x0, x0, x1
    mov sp, x0
    mov x0, x20
    cbnz x20, 1f
    bl  main
    b   .
1:  bl  secondary_main
    b   .

    .data
    .balign 4096
    // One level-1 table: device memory below 1 GiB, RAM as itself (1 GiB from RAM_BASE), RAM again as the alias.
    .global level1
level1:
    .quad 0x0060000000000405    // GiB 0: device (attribute 1), AF, UXN, PXN
    .fill (RAM_BASE >> 30) - 1, 8, 0
    .quad RAM_BASE | 0x701      // RAM at its own address: AF, inner shareable, EL1 only
    .fill ALIAS_INDEX - (RAM_BASE >> 30) - 1, 8, 0
    .quad RAM_BASE | 0x7c1      // and once more, AP 11: read-only and executable at EL1 and EL0
    .fill 512 - ALIAS_INDEX - 1, 8, 0

    .section .zero, "aw", @progbits
    .balign 4096
stacks:
    .skip 2 * 16384
