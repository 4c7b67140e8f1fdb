/* The demo's guest program, which the kernel starts as init: counts, and prints the count. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PERIOD 0.0625

volatile unsigned long heartbeats;

__attribute__((noinline)) void beat(void)
{
    heartbeats++;
}

/* `seconds` is passed in D0, a floating-point register. */
__attribute__((noinline)) void report(unsigned long count, double seconds)
{
    char line[64];

    snprintf(line, sizeof(line), "heartbeat %lu after %.1f s\n", count, seconds);
    if (write(STDOUT_FILENO, line, strlen(line)) < 0)
        _exit(1);
}

int main(void)
{
    /* A debugger reads memory without the guest's help, so everything has to be there. */
    mlockall(MCL_CURRENT | MCL_FUTURE);
    for (;;) {
        beat();
        report(heartbeats, heartbeats * PERIOD);
        usleep(PERIOD * 1000000);
    }
}
