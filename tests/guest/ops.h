/* Memory accesses that a debugger asks a guest to make, one instruction each.
 *
 * The debugger fills `ops`, sets `ops_count` and lets the guest run `run_ops`. Every access is one instruction
 * of a known width, so a watch over any bytes can be tried against any access. `ops_done` counts in the guest
 * what really happened: a watch that loses a store would show there and in memory.
 */
#ifndef OPS_H
#define OPS_H

#include <stdint.h>

enum op_kind {
    OP_NONE,
    OP_STORE8,
    OP_STORE16,
    OP_STORE32,
    OP_STORE64,
    OP_STORE_PAIR,
    OP_DC_ZVA, /* on arm64 only */
    OP_LOAD8,
    OP_LOAD16,
    OP_LOAD32,
    OP_LOAD64,
    OP_LOAD_PAIR,
};

struct op {
    uint64_t kind;
    uint64_t address;
    /* What a store writes (a pair: in both halves), and what a load reads (a pair: the sum of both). */
    uint64_t value;
};

enum { OPS_MAX = 64 };
volatile struct op ops[OPS_MAX];
volatile uint64_t ops_count;
volatile uint64_t ops_done;

__attribute__((noinline)) static void run_op(volatile struct op *op)
{
    uint64_t a = op->address, v = op->value, w = 0;

#ifdef __aarch64__
    switch (op->kind) {
    case OP_STORE8: asm volatile("strb %w1, [%0]" ::"r"(a), "r"(v) : "memory"); break;
    case OP_STORE16: asm volatile("strh %w1, [%0]" ::"r"(a), "r"(v) : "memory"); break;
    case OP_STORE32: asm volatile("str %w1, [%0]" ::"r"(a), "r"(v) : "memory"); break;
    case OP_STORE64: asm volatile("str %1, [%0]" ::"r"(a), "r"(v) : "memory"); break;
    case OP_STORE_PAIR: asm volatile("stp %1, %1, [%0]" ::"r"(a), "r"(v) : "memory"); break;
    case OP_DC_ZVA: asm volatile("dc zva, %0" ::"r"(a) : "memory"); break;
    case OP_LOAD8: asm volatile("ldrb %w0, [%1]" : "=r"(v) : "r"(a) : "memory"); break;
    case OP_LOAD16: asm volatile("ldrh %w0, [%1]" : "=r"(v) : "r"(a) : "memory"); break;
    case OP_LOAD32: asm volatile("ldr %w0, [%1]" : "=r"(v) : "r"(a) : "memory"); break;
    case OP_LOAD64: asm volatile("ldr %0, [%1]" : "=r"(v) : "r"(a) : "memory"); break;
    case OP_LOAD_PAIR:
        asm volatile("ldp %0, %1, [%2]" : "=&r"(v), "=&r"(w) : "r"(a) : "memory");
        v += w;
        break;
    }
#else
    switch (op->kind) {
    case OP_STORE8: asm volatile("movb %b1, (%0)" ::"r"(a), "q"(v) : "memory"); break;
    case OP_STORE16: asm volatile("movw %w1, (%0)" ::"r"(a), "r"(v) : "memory"); break;
    case OP_STORE32: asm volatile("movl %k1, (%0)" ::"r"(a), "r"(v) : "memory"); break;
    case OP_STORE64: asm volatile("movq %1, (%0)" ::"r"(a), "r"(v) : "memory"); break;
    case OP_STORE_PAIR: {
        uint64_t pair[2] = { v, v };
        asm volatile("movups %1, %%xmm0\n movups %%xmm0, (%0)" ::"r"(a), "m"(pair) : "memory");
        break;
    }
    case OP_LOAD8: asm volatile("movzbl (%1), %k0" : "=r"(v) : "r"(a) : "memory"); break;
    case OP_LOAD16: asm volatile("movzwl (%1), %k0" : "=r"(v) : "r"(a) : "memory"); break;
    case OP_LOAD32: asm volatile("movl (%1), %k0" : "=r"(v) : "r"(a) : "memory"); break;
    case OP_LOAD64: asm volatile("movq (%1), %0" : "=r"(v) : "r"(a) : "memory"); break;
    case OP_LOAD_PAIR: {
        uint64_t pair[2];
        asm volatile("movups (%1), %%xmm0\n movups %%xmm0, %0" : "=m"(pair) : "r"(a) : "memory");
        v = pair[0];
        w = pair[1];
        v += w;
        break;
    }
    }
#endif
    op->value = v;
}

__attribute__((noinline)) static void run_ops(void)
{
    uint64_t count = ops_count < OPS_MAX ? ops_count : OPS_MAX;

    ops_done = 0;
    for (uint64_t i = 0; i < count; i++) {
        run_op(&ops[i]);
        ops_done = i + 1;
    }
}

#endif
