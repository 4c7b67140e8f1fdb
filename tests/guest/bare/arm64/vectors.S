// Exception vectors. Each kind of exception is counted in the guest, so that what a debugger showed can be
// compared with what the guest saw.
//
// Registers are saved below SP in a frame of 32 bytes; handlers use X0 to X3 alone.

#define EC(esr, out) ubfx out, esr, #26, #6

    .macro entry target
    .balign 128
    b \target
    .endm

    .macro save
    stp x0, x1, [sp, #-32]!
    stp x2, x3, [sp, #16]
    .endm

    .macro restore
    ldp x2, x3, [sp, #16]
    ldp x0, x1, [sp], #32
    .endm

    // Counter `name` up by one; X0 and X1 change.
    .macro count name
    adrp x0, \name
    ldr x1, [x0, :lo12:\name]
    add x1, x1, #1
    str x1, [x0, :lo12:\name]
    .endm

    .text
    .balign 2048
    .global vectors, vector_sync, vector_irq, vector_el0_sync, vectors_end
vectors:
    entry unexpected            // current EL with SP_EL0
    entry unexpected
    entry unexpected
    entry unexpected
    .balign 128
vector_sync:                    // current EL with SP_ELx
    b sync
    .balign 128
vector_irq:
    b irq
    entry unexpected
    entry unexpected
    .balign 128
vector_el0_sync:                // lower EL, AArch64
    b el0_sync
    entry irq
    entry unexpected
    entry unexpected
    entry unexpected            // lower EL, AArch32
    entry unexpected
    entry unexpected
    entry unexpected
vectors_end:

    .global sync, irq
sync:
    save
    mrs x0, esr_el1
    EC(x0, x1)
    cmp x1, #0x15               // SVC: ELR is behind it already
    b.eq svc
    cmp x1, #0x3c               // BRK
    b.eq brk
    cmp x1, #0x25               // data abort, same EL
    b.eq abort
    b   unexpected
svc:
    count svc_count
    restore
    eret
brk:
    mrs x2, elr_el1
    adrp x3, brk_elr
    str x2, [x3, :lo12:brk_elr]
    adrp x3, brk_esr
    str x0, [x3, :lo12:brk_esr]
    count brk_count
    b   next_instruction
abort:
    adrp x3, abort_esr
    str x0, [x3, :lo12:abort_esr]
    mrs x2, far_el1
    adrp x3, abort_far
    str x2, [x3, :lo12:abort_far]
    count abort_count
next_instruction:
    mrs x0, elr_el1
    add x0, x0, #4
    msr elr_el1, x0
    restore
    eret

irq:
    save
    mrs x2, ICC_IAR1_EL1
    and x3, x2, #0xffffff
    cmp x3, #27                 // virtual timer
    b.ne 1f
    adrp x0, timer_period
    ldr x0, [x0, :lo12:timer_period]
    msr cntv_tval_el0, x0
    count timer_count
1:  msr ICC_EOIR1_EL1, x2
    restore
    eret

// EL0 code comes back with SVC; X30 is where EL1 goes on.
el0_sync:
    save
    mrs x0, esr_el1
    EC(x0, x1)
    cmp x1, #0x15
    b.ne unexpected
    count el0_svc_count
    restore
    msr elr_el1, x30
    msr spsr_el1, x29
    .global el0_sync_eret
el0_sync_eret:
    eret

    .global unexpected
unexpected:
    b   unexpected
