/* The bare-metal guest: a debugger stops it at `main`, sets `selected`, and lets it run one of the tests. */
#include <stdint.h>

#include "../ops.h"

enum test {
    TEST_NONE,
    TEST_REGISTERS,
    TEST_OPS,
    TEST_BOTH_CPUS,
    TEST_SLOTS,
    TEST_BRKS,
    TEST_STEP_DAIF,
    TEST_STEP_SVC,
    TEST_STEP_ERET,
    TEST_STEP_EL0,
    TEST_STEP_ABORT,
    TEST_STEP_BRK,
    TEST_STEP_WFI,
    TEST_STEP_EXCLUSIVE,
    TEST_STEP_PLAIN,
};

/* Set by the debugger. */
volatile uint64_t selected;
volatile uint64_t timer_period = 20000; /* Counter ticks between timer interrupts, 0 for none. */
volatile uint64_t rounds = 1000;

/* Counted by the guest. */
volatile uint64_t timer_count, svc_count, el0_svc_count, brk_count, abort_count;
volatile uint64_t brk_elr, brk_esr, abort_esr, abort_far;
volatile uint64_t hits[2];
volatile uint64_t arrived[2];
volatile uint64_t cpus_on;
volatile uint64_t exclusive_counter;
volatile uint64_t dfr0;
volatile uint64_t slot_calls[16];
volatile uint64_t slot_words[16];

/* Accesses under a watch: two pages, with room on either side. */
__attribute__((aligned(4096))) volatile uint8_t arena[4 * 4096];

void secondary_start(void);
void regs_test(void);
void step_daif(void);
void step_svc(void);
void step_svc_masked(void);
void step_eret(void);
void step_el0(uint64_t alias);
void step_abort(uint64_t address);
void step_brk(void);
void step_wfi(void);
void step_exclusive(volatile uint64_t *counter);
void step_plain(void);
extern char el0_code[];

/* The alias of start.S: GiB 256 is the GiB that RAM starts in. */
#define ALIAS_OF(p) ((256ull << 30) | ((uint64_t)(p) & ((1ull << 30) - 1)))
#define UNMAPPED (300ull << 30)

static void write32(uint64_t address, uint32_t value)
{
    asm volatile("str %w1, [%0]" ::"r"(address), "r"(value) : "memory");
}

static uint32_t read32(uint64_t address)
{
    uint32_t value;
    asm volatile("ldr %w0, [%1]" : "=r"(value) : "r"(address) : "memory");
    return value;
}

/* GICv3, the redistributor of CPU 0 alone: PPI 27 in group 1. */
static void timer_start(void)
{
    if (!timer_period)
        return;
    write32(GICD, 0x12); /* GICD_CTLR: ARE_NS, EnableGrp1NS */
    write32(GICR + 0x14, read32(GICR + 0x14) & ~2u); /* GICR_WAKER: awake */
    while (read32(GICR + 0x14) & 4)
        ;
    write32(GICR + 0x10080, 1u << 27); /* GICR_IGROUPR0 */
    write32(GICR + 0x10400 + 24, 0); /* GICR_IPRIORITYR6 */
    write32(GICR + 0x10100, 1u << 27); /* GICR_ISENABLER0 */
    asm volatile("msr S3_0_C12_C12_5, %0\n isb" ::"r"(7ull)); /* ICC_SRE_EL1 */
    asm volatile("msr S3_0_C4_C6_0, %0" ::"r"(0xffull)); /* ICC_PMR_EL1 */
    asm volatile("msr S3_0_C12_C12_7, %0\n isb" ::"r"(1ull)); /* ICC_IGRPEN1_EL1 */
    asm volatile("msr cntv_tval_el0, %0" ::"r"(timer_period));
    asm volatile("msr cntv_ctl_el0, %0\n isb" ::"r"(1ull));
    asm volatile("msr daifclr, #0xf");
}

static long cpu_on(uint64_t mpidr, void (*entry)(void), uint64_t context)
{
    register uint64_t x0 asm("x0") = 0xc4000003; /* PSCI CPU_ON */
    register uint64_t x1 asm("x1") = mpidr;
    register uint64_t x2 asm("x2") = (uint64_t)entry;
    register uint64_t x3 asm("x3") = context;

    asm volatile("hvc #0" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3)::"memory", "x4", "x5", "x6", "x7", "x8", "x9",
                 "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17");
    return (long)x0;
}

/* What both CPUs run into; a breakpoint sits on its first instruction. */
__attribute__((noinline)) void hit_me(uint64_t cpu)
{
    hits[cpu]++;
}

/* Both CPUs come out of each round's barrier together, so that they hit together. */
static void hit_rounds(uint64_t cpu)
{
    for (uint64_t round = 1; round <= rounds; round++) {
        arrived[cpu] = round;
        while (arrived[!cpu] < round)
            ;
        hit_me(cpu);
    }
}

/* Functions and words for every breakpoint and watchpoint slot that a CPU can have. */
#define SLOT(n) \
    __attribute__((noinline)) void slot_##n(void) { slot_calls[n]++; }
SLOT(0) SLOT(1) SLOT(2) SLOT(3) SLOT(4) SLOT(5) SLOT(6) SLOT(7)
SLOT(8) SLOT(9) SLOT(10) SLOT(11) SLOT(12) SLOT(13) SLOT(14) SLOT(15)
static void (*const slots[16])(void) = {
    slot_0, slot_1, slot_2, slot_3, slot_4, slot_5, slot_6, slot_7,
    slot_8, slot_9, slot_10, slot_11, slot_12, slot_13, slot_14, slot_15,
};

/* The guest's own BRKs, one after another. */
__attribute__((noinline)) void brk_rounds(void)
{
    for (uint64_t round = 0; round < rounds; round++)
        asm volatile("brk #0x55");
}

/* The debugger waits here for the end of a test. */
__attribute__((noinline)) void finished(uint64_t test)
{
    asm volatile("" ::"r"(test));
}

static void run(uint64_t test)
{
    switch (test) {
    case TEST_REGISTERS: regs_test(); break;
    case TEST_OPS: run_ops(); break;
    case TEST_BOTH_CPUS:
        cpu_on(1, secondary_start, 1);
        while (!cpus_on)
            ;
        hit_rounds(0);
        while (hits[1] < rounds)
            ;
        break;
    case TEST_SLOTS:
        for (int i = 0; i < 16; i++) {
            slots[i]();
            slot_words[i] = i + 1;
        }
        break;
    case TEST_BRKS: brk_rounds(); break;
    case TEST_STEP_DAIF: step_daif(); break;
    case TEST_STEP_SVC:
        step_svc();
        step_svc_masked();
        break;
    case TEST_STEP_ERET: step_eret(); break;
    case TEST_STEP_EL0: step_el0(ALIAS_OF(el0_code)); break;
    case TEST_STEP_ABORT: step_abort(UNMAPPED); break;
    case TEST_STEP_BRK: step_brk(); break;
    case TEST_STEP_WFI: step_wfi(); break;
    case TEST_STEP_EXCLUSIVE: step_exclusive(&exclusive_counter); break;
    case TEST_STEP_PLAIN: step_plain(); break;
    }
}

void main(void)
{
    asm volatile("mrs %0, id_aa64dfr0_el1" : "=r"(dfr0));
    timer_start();
    for (;;) {
        uint64_t test = selected;

        selected = TEST_NONE;
        run(test);
        finished(test);
    }
}

void secondary_main(uint64_t cpu)
{
    cpus_on = 1;
    hit_rounds(cpu);
    for (;;)
        asm volatile("wfi");
}
