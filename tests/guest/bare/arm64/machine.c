/* An arm64 machine: GICv3, generic timer, PSCI, and the tests that only it has. */
#include "../machine.h"

enum {
    TEST_STEP_DAIF = TEST_MACHINE,
    TEST_STEP_SVC,
    TEST_STEP_ERET,
    TEST_STEP_EL0,
    TEST_STEP_ABORT,
    TEST_STEP_BRK,
    TEST_STEP_WFI,
    TEST_STEP_EXCLUSIVE,
    TEST_STEP_PLAIN,
};

/* Counted by the guest. */
volatile uint64_t svc_count, el0_svc_count;
volatile uint64_t exclusive_counter;
/* ID_AA64DFR0_EL1, which says how many debug registers there are. */
volatile uint64_t dfr0;

void secondary_start(void);
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
void timer_start(void)
{
    asm volatile("mrs %0, id_aa64dfr0_el1" : "=r"(dfr0));
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

void secondary_cpu_start(void)
{
    register uint64_t x0 asm("x0") = 0xc4000003; /* PSCI CPU_ON */
    register uint64_t x1 asm("x1") = 1;
    register uint64_t x2 asm("x2") = (uint64_t)secondary_start;
    register uint64_t x3 asm("x3") = 1;

    asm volatile("hvc #0" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3)::"memory", "x4", "x5", "x6", "x7", "x8", "x9",
                 "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17");
}

void wait_for_interrupts(void)
{
    for (;;)
        asm volatile("wfi");
}

void machine_test(uint64_t test)
{
    switch (test) {
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
