/* What main.c has of a machine: machine.c of its directory. */
#ifndef MACHINE_H
#define MACHINE_H

#include <stdint.h>

/* Tests that every machine has; those of one machine follow. */
enum test {
    TEST_NONE,
    TEST_REGISTERS,
    TEST_OPS,
    TEST_BOTH_CPUS,
    TEST_SLOTS,
    TEST_BRKS,
    TEST_MACHINE,
};

/* A breakpoint instruction of the guest's own. */
#ifdef __aarch64__
#define OWN_BREAKPOINT "brk #0x55"
#else
#define OWN_BREAKPOINT "int3"
#endif

/* Set by the debugger: ticks between timer interrupts, 0 for none; and how often something is done. */
extern volatile uint64_t timer_period, rounds;

/* Starts the timer, if it has a period. */
void timer_start(void);
/* Starts the second CPU, which enters secondary_main with its index. */
void secondary_cpu_start(void);
/* For ever. */
void wait_for_interrupts(void);
/* Sets every register, and stores what a debugger leaves in them. */
void regs_test(void);
/* Runs a test of this machine. */
void machine_test(uint64_t test);

#endif
