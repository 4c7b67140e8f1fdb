// Exceptions and interrupts. Each kind is counted in the guest, so that what a debugger showed can be compared with what
// the guest saw.

    // A gate has the address in pieces, which only the assembler can cut: payload.ld puts this section at
    // VECTORS from BASE, a multiple of 64 KiB.
#define VECTORS 0x1000

    .macro gate target
    .word \target - vectors_start + VECTORS
    .word 0x10
    .word 0x8e00 | 3 << 13      // present, interrupt gate, for CPL 3 too
    .word BASE_HIGH
    .quad 0
    .endm

    .section .vectors, "ax"
    .global vectors_start
vectors_start:
    .global vector_db, vector_bp, vector_pf, vector_int, vector_syscall, irq, unexpected

    // A debug exception of the guest's own: where, and why. RF gets it over an execution breakpoint.
vector_db:
    push %rax
    incq db_count
    mov %dr6, %rax
    mov %rax, db_dr6
    mov $0xffff0ff0, %eax
    mov %rax, %dr6
    mov 8(%rsp), %rax
    mov %rax, db_rip
    orl $0x10000, 24(%rsp)
    pop %rax
    iretq

    // An INT3 of the guest's own: RIP is behind it.
vector_bp:
    push %rax
    incq brk_count
    mov 8(%rsp), %rax
    mov %rax, brk_elr
    pop %rax
    iretq

    // Goes on behind the instruction, which is that of step_fault.
vector_pf:
    push %rax
    incq abort_count
    mov 8(%rsp), %rax
    mov %rax, abort_esr
    mov %cr2, %rax
    mov %rax, abort_far
    addq $3, 16(%rsp)
    pop %rax
    add $8, %rsp
    iretq

vector_int:
    incq int_count
    iretq

    // From CPL 0 it goes on behind the SYSCALL; from the alias, at CPL 3, in step_user.
vector_syscall:
    incq syscall_count
    bt $38, %rcx
    jc 1f
    push %r11
    popfq
    jmp *%rcx
1:  incq user_syscall_count
    mov step_user_sp, %rsp
    sti
    jmp step_user_back

irq:
    push %rax
    push %rdx
    mov $APIC, %edx
    mov timer_period, %eax
    mov %eax, 0x380(%rdx)       // initial count
    incq timer_count
    movl $0, 0xb0(%rdx)         // end of interrupt
    pop %rdx
    pop %rax
    iretq

unexpected:
    jmp unexpected

    .balign 16
    .global idt
idt:
    gate unexpected
    gate vector_db
    gate unexpected
    gate vector_bp
    .rept 10
    gate unexpected
    .endr
    gate vector_pf
    .rept 17
    gate unexpected
    .endr
    gate irq                    // 0x20
    .rept 95
    gate unexpected
    .endr
    gate vector_int             // 0x80
    .rept 127
    gate unexpected
    .endr
