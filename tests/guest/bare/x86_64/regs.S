// Every register gets a value of its own; a debugger reads them at regs_set, changes them, and the guest stores
// what it then finds from regs_read on.

#define PATTERN 0xa5a5000000000000

    .text
    .global regs_test, regs_set, regs_read, regs_stored
    .altmacro
    // XMM<n> = n + 1 in the high half's low byte, pattern in the low half
    .macro setv n
    movabs $(PATTERN | ((\n + 1) << 8)), %rax
    movabs $(0x5a00000000000000 | (\n + 1)), %rcx
    push %rcx
    push %rax
    movups (%rsp), %xmm\n
    add $16, %rsp
    .endm
    .macro storev n
    movups %xmm\n, (144 + 16 * \n)(%rsp)
    .endm
    .macro setbase msr, high, low
    mov $\msr, %ecx
    mov $\low, %eax
    mov $\high, %edx
    wrmsr
    .endm
regs_test:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, regs_saved_sp
    setbase 0xc0000100, 0x00001122, 0x33445566          // FS base
    setbase 0xc0000101, 0x00005566, 0x11223344          // GS base
    setbase 0xc0000102, 0xffff8877, 0x66554433          // kernel GS base
    movl $0x1fa0, regs_mxcsr    // everything masked, PE
    ldmxcsr regs_mxcsr
    .set n, 0
    .rept 16
    setv %n
    .set n, n + 1
    .endr
    movabs $(PATTERN | 1), %rax
    movabs $(PATTERN | 2), %rbx
    movabs $(PATTERN | 3), %rcx
    movabs $(PATTERN | 4), %rdx
    movabs $(PATTERN | 5), %rsi
    movabs $(PATTERN | 6), %rdi
    movabs $(PATTERN | 7), %rbp
    movabs $(PATTERN | 9), %r8
    movabs $(PATTERN | 10), %r9
    movabs $(PATTERN | 11), %r10
    movabs $(PATTERN | 12), %r11
    movabs $(PATTERN | 13), %r12
    movabs $(PATTERN | 14), %r13
    movabs $(PATTERN | 15), %r14
    movabs $(PATTERN | 16), %r15
    mov $regs_frame, %esp
    push $0x8d7                 // OF, SF, ZF, AF, PF, CF, and interrupts off
    popfq
regs_set:
    nop
regs_read:
    // RSP points into regs_frame, also when the debugger has written it; everything is stored without another base.
    mov %rax, 0(%rsp)
    mov %rbx, 8(%rsp)
    mov %rcx, 16(%rsp)
    mov %rdx, 24(%rsp)
    mov %rsi, 32(%rsp)
    mov %rdi, 40(%rsp)
    mov %rbp, 48(%rsp)
    mov %r8, 56(%rsp)
    mov %r9, 64(%rsp)
    mov %r10, 72(%rsp)
    mov %r11, 80(%rsp)
    mov %r12, 88(%rsp)
    mov %r13, 96(%rsp)
    mov %r14, 104(%rsp)
    mov %r15, 112(%rsp)
    pushfq
    pop 120(%rsp)
    stmxcsr 128(%rsp)
    .set n, 0
    .rept 16
    storev %n
    .set n, n + 1
    .endr
    .set at, 400
    .macro storebase msr, at
    mov $\msr, %ecx
    rdmsr
    mov %eax, \at(%rsp)
    mov %edx, (\at + 4)(%rsp)
    .endm
    storebase 0xc0000100, 400
    storebase 0xc0000101, 408
    storebase 0xc0000102, 416
    mov regs_saved_sp, %rsp
    cld
    sti
    nop                         // what some CPUs execute in one step with STI
regs_stored:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .section .zero, "aw", @progbits
    .balign 16
    .global regs_frame
regs_saved_sp:
    .skip 8
regs_mxcsr:
    .skip 8
    .skip 256                   // what PUSHFQ puts below RSP, while that is regs_frame
regs_frame:
    .skip 1024
