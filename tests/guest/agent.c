/* Init of the Linux guest: a debugger stops it at `agent_poll`, sets `command`, and gets the answer in
 * `agent_done`. All of its memory is mapped and locked, so that any address can be translated at any time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ops.h"

#ifdef __aarch64__
#define OWN_BREAKPOINT "brk #0x123"
#else
#define OWN_BREAKPOINT "int3"
#endif

enum command {
    CMD_NONE,
    CMD_OPS,      /* run `ops` */
    CMD_TRAPS,    /* `argument` breakpoint instructions of its own, each a SIGTRAP */
    CMD_SYSCALLS, /* getpid on each CPU, `argument` times */
    CMD_CALLS,    /* every one of the thousand functions, once */
    CMD_LINES,    /* a function to step through line by line */
    CMD_HAMMER,   /* getpid on each CPU, from now on */
    CMD_CALM,     /* and its end */
    CMD_REBOOT,
    CMD_SPIN,     /* a line that takes `argument` rounds, for a step that takes its time */
    CMD_DIRTY,    /* writes to `argument` MiB all the time, until that is 0 */
};

/* Set by the debugger. */
volatile uint64_t command, argument;

/* Counted by the guest. */
volatile uint64_t traps, syscalls[2], calls, lines_result, polls;
/* The last command that ended; the debugger may clear it. */
volatile uint64_t last_done;

/* A page of its own inside three, and a page at `edge` with nothing mapped behind it. */
__attribute__((aligned(4096))) volatile uint8_t arena[3 * 4096];
volatile uint8_t *edge;

static pthread_t threads[2];
static pthread_barrier_t barrier;
static volatile uint64_t syscall_rounds;

/* A thousand functions, 16 to a name. Each only counts, and each starts on an address of its own. */
#define F(n) __attribute__((noinline, aligned(16))) static void f_##n(void) { calls++; asm volatile("" ::"i"(0x##n)); }
#define F10(n) F(n##0) F(n##1) F(n##2) F(n##3) F(n##4) F(n##5) F(n##6) F(n##7) F(n##8) F(n##9)
#define F100(n) F10(n##0) F10(n##1) F10(n##2) F10(n##3) F10(n##4) F10(n##5) F10(n##6) F10(n##7) F10(n##8) F10(n##9)
F100(0) F100(1) F100(2) F100(3) F100(4) F100(5) F100(6) F100(7) F100(8) F100(9)

#define A(n) f_##n,
#define A10(n) A(n##0) A(n##1) A(n##2) A(n##3) A(n##4) A(n##5) A(n##6) A(n##7) A(n##8) A(n##9)
#define A100(n) A10(n##0) A10(n##1) A10(n##2) A10(n##3) A10(n##4) A10(n##5) A10(n##6) A10(n##7) A10(n##8) A10(n##9)
void (*const functions[1000])(void) = {
    A100(0) A100(1) A100(2) A100(3) A100(4) A100(5) A100(6) A100(7) A100(8) A100(9)
};

static void on_trap(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)info;
    traps++;
#ifdef __aarch64__
    ((ucontext_t *)context)->uc_mcontext.pc += 4;
#else
    (void)context; /* It is behind the INT3. */
#endif
}

static void run_traps(void)
{
    traps = 0;
    for (uint64_t i = 0; i < argument; i++)
        asm volatile(OWN_BREAKPOINT);
}

/* To a debugger of the guest a CPU is a thread: what is to be stepped line by line has to stay on one. */
static void stay_on(uint64_t cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof(set), &set);
}

static void *syscall_thread(void *index)
{
    uint64_t cpu = (uint64_t)index;

    stay_on(cpu);
    for (;;) {
        pthread_barrier_wait(&barrier);
        for (uint64_t i = 0; i < syscall_rounds; i++) {
            syscall(SYS_getpid);
            syscalls[cpu]++;
        }
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static void run_syscalls(void)
{
    syscalls[0] = syscalls[1] = 0;
    syscall_rounds = argument;
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
}

/* One statement a line: `next` has to stop on each of them. */
__attribute__((noinline)) uint64_t lines_callee(uint64_t value)
{
    return value * 3;
}

__attribute__((noinline, optimize("O0"))) uint64_t lines(uint64_t value)
{
    uint64_t a = value + 1;       /* LINES-1 */
    uint64_t b = lines_callee(a); /* LINES-2 */
    uint64_t c = a + b;           /* LINES-3 */
    lines_result = c;             /* LINES-4 */
    return c;                     /* LINES-5 */
}

/* The step over the first line ends on the second one. */
__attribute__((noinline, optimize("O0"))) void spin(uint64_t rounds)
{
    for (volatile uint64_t i = 0; i < rounds; i++);
    lines_result = rounds;
}

__attribute__((noinline)) void dirty_round(volatile uint8_t *memory, uint64_t length)
{
    for (uint64_t i = 0; i < length; i += 4096)
        memory[i]++;
}

static void dirty(void)
{
    uint64_t length = argument << 20;
    uint8_t *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    while (argument)
        dirty_round(memory, length);
    munmap(memory, length);
}

/* The debugger stops here to give a command. */
__attribute__((noinline)) void agent_poll(void)
{
    polls++;
}

/* And here to see its end. */
__attribute__((noinline)) void agent_done(uint64_t done)
{
    asm volatile("" ::"r"(done));
}

static void run_command(uint64_t number)
{
    switch (number) {
    case CMD_OPS: run_ops(); break;
    case CMD_TRAPS: run_traps(); break;
    case CMD_SYSCALLS: run_syscalls(); break;
    case CMD_CALLS:
        calls = 0;
        for (int i = 0; i < 1000; i++)
            functions[i]();
        break;
    case CMD_LINES: lines(argument); break;
    case CMD_SPIN: spin(argument); break;
    case CMD_DIRTY: dirty(); break;
    case CMD_HAMMER:
        syscall_rounds = UINT64_MAX;
        pthread_barrier_wait(&barrier);
        break;
    case CMD_CALM:
        syscall_rounds = 0;
        pthread_barrier_wait(&barrier);
        break;
    case CMD_REBOOT: reboot(RB_AUTOBOOT); break;
    }
}

/* Drivers that the VMM wants to see, in the order in which they can be loaded. No other program does it: what calls a
 * function of the kernel's here is the agent. */
static void load_modules(void)
{
    for (int n = 0;; n++) {
        char path[32];
        int file;

        snprintf(path, sizeof path, "/modules/%d.ko", n);
        file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0)
            return;
        if (syscall(SYS_finit_module, file, "", 0))
            perror(path);
        close(file);
    }
}

int main(void)
{
    struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO };

    load_modules();
    stay_on(1);
    sigaction(SIGTRAP, &action, NULL);
    edge = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap((void *)(edge + 4096), 4096);
    for (int i = 0; i < 4096; i++)
        edge[i] = (uint8_t)i;
    mlockall(MCL_CURRENT | MCL_FUTURE);
    pthread_barrier_init(&barrier, NULL, 3);
    for (uint64_t cpu = 0; cpu < 2; cpu++)
        pthread_create(&threads[cpu], NULL, syscall_thread, (void *)cpu);
    printf("guest agent ready\n");
    fflush(stdout);
    for (;;) {
        uint64_t number = command;

        /* A command that the debugger gives behind the look at it is the next one, not to be overwritten. */
        if (number)
            command = CMD_NONE;
        agent_poll();
        if (number) {
            run_command(number);
            agent_done(number);
            last_done = number;
        }
        usleep(20000);
    }
}
