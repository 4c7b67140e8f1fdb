/* The bare-metal guest: a debugger stops it at `main`, sets `selected`, and lets it run one of the tests. */
#include "machine.h"

#include "../ops.h"

/* Set by the debugger. */
volatile uint64_t selected;
volatile uint64_t timer_period = 20000;
volatile uint64_t rounds = 1000;

/* Counted by the guest. */
volatile uint64_t timer_count, brk_count, brk_elr, brk_esr, abort_count, abort_esr, abort_far;
volatile uint64_t hits[2];
volatile uint64_t arrived[2];
volatile uint64_t cpus_on;
volatile uint64_t slot_calls[16];
volatile uint64_t slot_words[16];
/* Rounds of the main loop. */
volatile uint64_t loops;

/* Accesses under a watch: two pages, with room on either side. */
__attribute__((aligned(4096))) volatile uint8_t arena[4 * 4096];

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

/* The guest's own breakpoint instructions, one after another. */
__attribute__((noinline)) void brk_rounds(void)
{
    for (uint64_t round = 0; round < rounds; round++)
        asm volatile(OWN_BREAKPOINT);
}

/* The debugger waits here for the end of a test. */
__attribute__((noinline)) void finished(uint64_t test)
{
    asm volatile("" ::"r"(test));
    loops++;
}

static void run(uint64_t test)
{
    switch (test) {
    case TEST_NONE: break;
    case TEST_REGISTERS: regs_test(); break;
    case TEST_OPS: run_ops(); break;
    case TEST_BOTH_CPUS:
        secondary_cpu_start();
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
    default: machine_test(test);
    }
}

void main(void)
{
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
    wait_for_interrupts();
}
