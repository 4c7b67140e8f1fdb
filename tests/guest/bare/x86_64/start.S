// Entry of the bare-metal guest: 64-bit mode on the loader's tables, then on its own; and that of a second CPU, which
// starts in real mode.

#define ALIAS_INDEX 256         // GiB 256 maps the first GiB again, readable and executable at CPL 3

    .section .head, "ax"
    .global _start
    // A short program whose every step has a known result, for stepping before anything is set up.
    .global boot_code, boot_second, boot_loop, boot_loop_end
_start:
boot_code:
    mov %rsi, %r15              // boot_params
boot_second:
    mov $0, %eax
    mov $5, %ecx
boot_loop:
    add %rcx, %rax
    sub $1, %rcx
    jne boot_loop
boot_loop_end:                  // RAX = 15
    mov $0, %ebx                // index of this CPU

    .global tables_load, tables_loaded
tables_load:
    mov $level4, %eax
    mov %rax, %cr3
tables_loaded:
    mov $(1 << 5 | 1 << 9), %eax // CR4: PAE, OSFXSR
    mov %rax, %cr4
    lgdt gdt_pointer
    lidt idt_pointer
    mov $0x18, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    mov $0xc0000080, %ecx       // IA32_EFER: SCE, for SYSCALL
    rdmsr
    or $1, %eax
    wrmsr
    mov $0xc0000081, %ecx       // IA32_STAR: kernel at 0x10, user from 0x20
    mov $0, %eax
    mov $(0x23 << 16 | 0x10), %edx
    wrmsr
    mov $0xc0000082, %ecx       // IA32_LSTAR
    mov $vector_syscall, %eax
    mov $0, %edx
    wrmsr
    mov $0xc0000084, %ecx       // IA32_FMASK: TF, IF, DF
    mov $0x700, %eax
    wrmsr
    lea 1(%rbx), %eax
    shl $14, %eax
    lea stacks(%rax), %rsp
    mov %ebx, %edi
    test %ebx, %ebx
    jne 1f
    mov $0x38, %eax
    ltr %ax
    call main
    jmp .
1:  sti
    call secondary_main
    jmp .

    .global secondary_start
secondary_start:
    mov $1, %ebx
    jmp tables_load

    // Copied to TRAMPOLINE, below 1 MiB, where a startup interrupt leads: from real mode to 64-bit mode at once.
    .global trampoline, trampoline_end
    .code16
trampoline:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl (gdt_pointer_32 - trampoline)
    mov $(1 << 5 | 1 << 9), %eax
    mov %eax, %cr4
    mov $level4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx       // IA32_EFER: LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80000011, %eax       // PG, ET, PE
    mov %eax, %cr0
    ljmpl $0x10, $secondary_start
    .balign 4
gdt_pointer_32:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:
    .code64

    // In this section, since its base is in the descriptor in pieces, which only the assembler can cut. BASE is a
    // multiple of 64 KiB.
    .balign 16
    .global tss
tss:
    .long 0
    .quad stacks_kernel_entry   // RSP0
    .fill 92, 1, 0
tss_end:

    .balign 16
gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff    // 0x10: code
    .quad 0x00cf93000000ffff    // 0x18: data
    .quad 0
    .quad 0x00cff3000000ffff    // 0x28: data, CPL 3
    .quad 0x00affb000000ffff    // 0x30: code, CPL 3
    .word tss_end - tss - 1     // 0x38: task state
    .word tss - _start
    .byte BASE_HIGH & 0xff, 0x89, 0, BASE_HIGH >> 8
    .quad 0
gdt_end:
    .balign 8
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 0xfff
    .quad idt

    .data
    .balign 4096
    // The first GiB as itself, the APICs, and the first GiB again as the alias.
level4:
    .quad level3 + 7
    .fill 511, 8, 0
level3:
    .quad level2 + 3
    .fill 2, 8, 0
    .quad level2_devices + 3
    .fill ALIAS_INDEX - 4, 8, 0
    .quad level2_alias + 5
    .fill 511 - ALIAS_INDEX, 8, 0
    .global level4
    .set n, 0
level2:
    .rept 512
    .quad n << 21 | 0x83        // large, writable
    .set n, n + 1
    .endr
    .set n, 0
level2_alias:
    .rept 512
    .quad n << 21 | 0x85        // large, CPL 3, read-only
    .set n, n + 1
    .endr
level2_devices:
    .fill 502, 8, 0
    .quad 0xfec00000 | 0x93     // large, writable, not cached: index 502
    .quad 0xfee00000 | 0x93
    .fill 8, 8, 0

    .section .zero, "aw", @progbits
    .balign 4096
    .global stacks
stacks:
    .skip 2 * 16384
    .skip 4096
stacks_kernel_entry:
    .skip 16
