// Every register gets a value of its own; a debugger reads them at regs_set, changes them, and the guest stores
// what it then finds from regs_read on.

#define PATTERN 0xa5a5000000000000

    .text
    .global regs_test, regs_set, regs_read, regs_stored
regs_test:
    stp x19, x20, [sp, #-96]!
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    mov x0, sp
    adrp x1, regs_saved_sp
    str x0, [x1, :lo12:regs_saved_sp]

    ldr x0, =0x1122334455667788
    msr tpidr_el0, x0
    ldr x0, =0x8877665544332211
    msr tpidr_el1, x0
    ldr x0, =0x0f1e2d3c4b5a6978
    msr tpidrro_el0, x0
    ldr x0, =0xabcdef01
    msr contextidr_el1, x0
    ldr x0, =0x00000000cafe0000
    msr sp_el0, x0
    ldr x0, =0x0000000001c00000 // AHP off, DN 0, FZ, RMode 3
    msr fpcr, x0
    ldr x0, =0x000000000800009f // QC and the cumulative flags
    msr fpsr, x0
    // V<n> = n + 1 in the high half's low byte, pattern of X<n> in the low half
    .altmacro
    .macro setv n
    ldr x0, =(PATTERN | ((\n + 1) << 8))
    fmov d\n, x0
    ldr x0, =(0x5a00000000000000 | (\n + 1))
    mov v\n\().d[1], x0
    .endm
    .macro setx n
    ldr x\n, =(PATTERN | (\n + 1))
    .endm
    .set n, 0
    .rept 32
    setv %n
    .set n, n + 1
    .endr
    mov x0, #0x90000000         // N and V
    msr nzcv, x0
    .set n, 0
    .rept 31
    setx %n
    .set n, n + 1
    .endr
regs_set:
    nop
regs_read:
    // SP points at regs_frame when the debugger has written it; everything is stored without another base.
    .set n, 0
    .macro storex n, m
    stp x\n, x\m, [sp, #(8 * \n)]
    .endm
    .rept 15
    storex %n, %(n + 1)
    .set n, n + 2
    .endr
    str x30, [sp, #240]
    mrs x0, nzcv
    str x0, [sp, #248]
    mrs x0, fpcr
    str x0, [sp, #256]
    mrs x0, fpsr
    str x0, [sp, #264]
    mrs x0, tpidr_el0
    str x0, [sp, #272]
    mrs x0, tpidr_el1
    str x0, [sp, #280]
    mrs x0, contextidr_el1
    str x0, [sp, #288]
    mrs x0, tpidrro_el0
    str x0, [sp, #296]
    .set n, 0
    .macro storev n
    str q\n, [sp, #(304 + 16 * \n)]
    .endm
    .rept 32
    storev %n
    .set n, n + 1
    .endr
    adrp x0, regs_saved_sp
    ldr x0, [x0, :lo12:regs_saved_sp]
    mov sp, x0
regs_stored:
    msr fpcr, xzr
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp x19, x20, [sp], #96
    ret

    .section .zero, "aw", @progbits
    .balign 16
    .global regs_frame
regs_saved_sp:
    .skip 16
    .skip 256                   // an interrupt's frame, while SP is regs_frame
regs_frame:
    .skip 1024
