/* A PC: local APICs, and the tests that only it has. */
#include "../machine.h"

enum {
    TEST_STEP_FLAGS = TEST_MACHINE,
    TEST_STEP_SYSCALL,
    TEST_STEP_INT,
    TEST_STEP_IRET,
    TEST_STEP_USER,
    TEST_STEP_FAULT,
    TEST_STEP_INT3,
    TEST_STEP_HLT,
    TEST_STEP_MOV_SS,
    TEST_STEP_PLAIN,
    TEST_OWN_BREAKPOINTS,
};

/* Counted by the guest. */
volatile uint64_t syscall_count, user_syscall_count, int_count;
volatile uint64_t db_count, db_dr6, db_rip;
/* Rounds of own_breakpoints, and those in which a debug register did not hold what the guest had written. */
volatile uint64_t own_rounds, own_lost;

void step_flags(void);
void step_syscall(void);
void step_int(void);
void step_iret(void);
void step_user(uint64_t alias);
void step_fault(uint64_t address);
void step_int3(void);
void step_hlt(void);
void step_mov_ss(void);
void step_plain(void);
extern char user_code[], trampoline[], trampoline_end[];

/* The alias of start.S: GiB 256 is the first GiB. */
#define ALIAS_OF(p) ((256ull << 30) | (uint64_t)(p))
#define UNMAPPED (300ull << 30)
/* A page that nothing else of the loader's is in. */
#define TRAMPOLINE 0x8000ull

enum {
    APIC_SPURIOUS = 0xf0,
    APIC_COMMAND = 0x300,
    APIC_COMMAND_TO = 0x310,
    APIC_TIMER = 0x320,
    APIC_INITIAL_COUNT = 0x380,
    APIC_DIVIDE = 0x3e0,
};

static void apic_write(uint64_t at, uint32_t value)
{
    *(volatile uint32_t *)(APIC + at) = value;
}

/* One shot, and again in the handler. Interrupts are on without it, too: a guest that loops with them off is not left in Bochs'
 * VMX, whatever interrupts KVM's host. */
void timer_start(void)
{
    if (timer_period) {
        apic_write(APIC_SPURIOUS, 0x1ff);
        apic_write(APIC_DIVIDE, 3); /* by 16 */
        apic_write(APIC_TIMER, 0x20);
        apic_write(APIC_INITIAL_COUNT, timer_period);
    }
    asm volatile("sti");
}

void secondary_cpu_start(void)
{
    /* It must not be read before it is there. */
    for (char *from = trampoline, *to = (char *)TRAMPOLINE; from < trampoline_end; from++, to++)
        *(volatile char *)to = *from;
    apic_write(APIC_SPURIOUS, 0x1ff);
    apic_write(APIC_COMMAND_TO, 1 << 24);
    apic_write(APIC_COMMAND, 0x4500); /* INIT */
    apic_write(APIC_COMMAND_TO, 1 << 24);
    apic_write(APIC_COMMAND, 0x4600 | TRAMPOLINE >> 12); /* startup */
}

void wait_for_interrupts(void)
{
    for (;;)
        asm volatile("hlt");
}

/* Where a debug register of the guest's own is. */
__attribute__((noinline)) void own_target(void)
{
    asm volatile("");
}

/* The guest's own execution breakpoint, and whether it keeps its registers. */
static void own_breakpoints(void)
{
    uint64_t address = (uint64_t)own_target, control = 0x402, found; /* G0 */

    own_rounds = own_lost = 0;
    asm volatile("mov %0, %%dr0\n mov %1, %%dr7" ::"r"(address), "r"(control));
    for (uint64_t round = 0; round < rounds; round++) {
        own_target();
        asm volatile("mov %%dr0, %0" : "=r"(found));
        own_lost += found != address;
        asm volatile("mov %%dr7, %0" : "=r"(found));
        own_lost += found != control;
        own_rounds++;
    }
    asm volatile("mov %0, %%dr7" ::"r"(0x400ull));
}

void machine_test(uint64_t test)
{
    switch (test) {
    case TEST_STEP_FLAGS: step_flags(); break;
    case TEST_STEP_SYSCALL: step_syscall(); break;
    case TEST_STEP_INT: step_int(); break;
    case TEST_STEP_IRET: step_iret(); break;
    case TEST_STEP_USER: step_user(ALIAS_OF(user_code)); break;
    case TEST_STEP_FAULT: step_fault(UNMAPPED); break;
    case TEST_STEP_INT3: step_int3(); break;
    case TEST_STEP_HLT: step_hlt(); break;
    case TEST_STEP_MOV_SS: step_mov_ss(); break;
    case TEST_STEP_PLAIN: step_plain(); break;
    case TEST_OWN_BREAKPOINTS: own_breakpoints(); break;
    }
}
