// Instructions that are hard to step, with a label where a debugger wants to look.

    .text
    .global step_flags, step_flags_end
step_flags:
    pushfq                      // as the guest left them, not as a debugger sets TF
    pop %rax
    cli
    pushfq
    pop %rcx
    sti
    nop                         // nothing traps between STI and the next instruction on some CPUs
    pushfq
    pop %rdx
    cli
    push %rax
    popfq
    pushfq
    pop %r8
step_flags_end:
    ret

    .global step_syscall, step_syscall_after
step_syscall:
    syscall
step_syscall_after:
    ret

    .global step_int, step_int_after
step_int:
    int $0x80
step_int_after:
    ret

    .global step_int3, step_int3_after
step_int3:
    int3
step_int3_after:
    ret

    // RDI: an address that is not mapped.
    .global step_fault, step_fault_insn, step_fault_after
step_fault:
step_fault_insn:
    mov (%rdi), %rax
step_fault_after:
    ret

    .global step_hlt, step_hlt_after
step_hlt:
    hlt
step_hlt_after:
    ret

    // The instruction behind MOV SS comes along.
    .global step_mov_ss, step_mov_ss_insn, step_mov_ss_next, step_mov_ss_after
step_mov_ss:
    mov %ss, %ecx
    mov $0, %eax
step_mov_ss_insn:
    mov %ecx, %ss
step_mov_ss_next:
    add $1, %eax
step_mov_ss_after:
    add $1, %eax
    ret

    // IRETQ to CPL 0 with interrupts off, then on.
    .global step_iret, step_iret_off, step_iret_off_target, step_iret_on, step_iret_after
step_iret:
    mov %rsp, %rdx
    push $0x18
    push %rdx
    push $2                     // nothing but the bit that is always set
    push $0x10
    push $step_iret_off_target
step_iret_off:
    iretq
    nop
step_iret_off_target:
    push $0x18
    push %rdx
    push $0x202                 // IF
    push $0x10
    push $step_iret_after
step_iret_on:
    iretq
    nop
step_iret_after:
    ret

    // RDI: the alias of user_code, which CPL 3 may execute. Back with SYSCALL.
    .global step_user, step_user_iret, step_user_back, user_code, user_syscall, user_end
step_user:
    push %rbx
    mov %rsp, step_user_sp
    push $0x2b
    push $0
    push $0x202
    push $0x33
    push %rdi
step_user_iret:
    iretq
step_user_back:
    pop %rbx
    ret
user_code:
    mov $0x123, %eax
    add $1, %eax
user_syscall:
    syscall
user_end:

    // A long run of plain instructions, for many steps with interrupts pending.
    .global step_plain, step_plain_add, step_plain_end
step_plain:
    mov $0, %edi
    mov $2000, %esi
step_plain_add:
    add %rsi, %rdi
    sub $1, %rsi
    jne step_plain_add
step_plain_end:
    ret

    .section .zero, "aw", @progbits
    .balign 8
    .global step_user_sp
step_user_sp:
    .skip 8
