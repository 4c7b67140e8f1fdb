// Instructions that are hard to step, with a label where a debugger wants to look.

    .text
    .global step_daif, step_daif_end
step_daif:
    mrs x0, daif                // as the guest left it, not as a debugger masks it
    msr daifset, #2
    mrs x1, daif
    msr daifclr, #2
    mrs x2, daif
    mov x9, #0x3c0
    msr daif, x9
    mrs x3, daif
    msr daif, x0
    mrs x4, daif
step_daif_end:
    ret

    .global step_svc, step_svc_after
step_svc:
    svc #42
step_svc_after:
    ret

    // Stepped with PSTATE.I set as well: SPSR must hold it.
    .global step_svc_masked, step_svc_masked_insn
step_svc_masked:
    msr daifset, #2
step_svc_masked_insn:
    svc #43
    msr daifclr, #2
    ret

    .global step_brk, step_brk_insn
step_brk:
step_brk_insn:
    brk #0x77
    ret

    // X0: an address that is not mapped.
    .global step_abort, step_abort_insn, step_abort_after
step_abort:
step_abort_insn:
    ldr x1, [x0]
step_abort_after:
    ret

    .global step_wfi, step_wfi_insn, step_wfi_after
step_wfi:
step_wfi_insn:
    wfi
step_wfi_after:
    ret

    // X0: a counter to add one to.
    .global step_exclusive, step_exclusive_loop, step_exclusive_after
step_exclusive:
step_exclusive_loop:
    ldaxr x1, [x0]
    add x1, x1, #1
    stlxr w2, x1, [x0]
    cbnz w2, step_exclusive_loop
step_exclusive_after:
    ret

    // ERET to EL1 with every mask set, then to EL1 with interrupts on.
    .global step_eret, step_eret_masked, step_eret_masked_target, step_eret_unmasked, step_eret_after
step_eret:
    msr daifset, #2             // an interrupt would change ELR and SPSR
    adr x0, step_eret_masked_target
    msr elr_el1, x0
    mov x0, #0x3c5              // D, A, I, F, EL1h
    msr spsr_el1, x0
step_eret_masked:
    eret
    nop
step_eret_masked_target:
    adr x0, step_eret_after
    msr elr_el1, x0
    mov x0, #0x5                // EL1h, nothing masked
    msr spsr_el1, x0
step_eret_unmasked:
    eret
    nop
step_eret_after:
    ret

    // X0: the alias of el0_code, which EL0 may execute. Back with SVC.
    .global step_el0, step_el0_eret, step_el0_back, el0_code, el0_svc, el0_end
step_el0:
    msr daifset, #2             // an interrupt would change ELR and SPSR
    mov x9, x30
    adr x30, step_el0_back
    mov x29, #0x5
    msr elr_el1, x0
    mov x1, #0x0                // EL0t, nothing masked
    msr spsr_el1, x1
step_el0_eret:
    eret
step_el0_back:
    mov x30, x9
    mov x29, #0
    ret
el0_code:
    mov x1, #0x123
    add x1, x1, #1
el0_svc:
    svc #7
el0_end:

    // A long run of plain instructions, for many steps with interrupts pending.
    .global step_plain, step_plain_add, step_plain_end
step_plain:
    mov x0, #0
    mov x1, #2000
step_plain_add:
    add x0, x0, x1
    subs x1, x1, #1
    b.ne step_plain_add
step_plain_end:
    ret
