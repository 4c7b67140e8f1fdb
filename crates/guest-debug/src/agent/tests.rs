use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Registers and bytes that a test says there are.
#[derive(Default)]
struct Fake {
    registers: BTreeMap<u16, u64>,
    memory: BTreeMap<u64, u8>,
}

impl Fake {
    fn new() -> Self {
        let mut fake = Self::default();
        for (address, byte) in (0x1000..).zip(*b"\x88\x77\x66\x55\x44\x33\x22\x11vfs_write\0") {
            fake.memory.insert(address, byte);
        }
        fake.registers.extend([(0, 0x1000), (1, 5), (2, -7_i64 as u64), (SP, 0x1008)]);
        fake
    }
}

impl Machine for Fake {
    fn register(&mut self, number: u16) -> Result<u64, EvalError> {
        let missing = EvalError::Register { number, reason: "the test has none".into() };
        self.registers.get(&number).copied().ok_or(missing)
    }

    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), EvalError> {
        let length = data.len();
        for (at, byte) in (address..).zip(data) {
            // What is behind the last byte is zero, on the same page.
            *byte = match self.memory.get(&at) {
                Some(byte) => *byte,
                None if at & !0xfff == 0x1000 => 0,
                None => return Err(EvalError::Memory { address, length, reason: "not mapped".into() }),
            };
        }
        Ok(())
    }
}

fn value(bytes: &[u8]) -> Result<u64, EvalError> {
    let expression = Expression::condition(bytes.to_vec()).unwrap();
    expression.evaluate(&mut Fake::new()).map(|outcome| outcome.value)
}

/// Pushes -7 and 5, then executes `code`.
fn of_two(code: &[u8]) -> u64 {
    let mut bytes = vec![0x26, 0, 2, 0x22, 5];
    bytes.extend(code);
    bytes.push(0x27);
    value(&bytes).unwrap()
}

#[test]
fn arithmetic_and_comparison() {
    let minus = |n: i64| (-n) as u64;
    let cases: [(u8, u64); 16] = [
        (0x02, minus(2)),
        (0x03, minus(12)),
        (0x04, minus(35)),
        (0x05, minus(1)),
        (0x06, minus(7) / 5),
        (0x07, minus(2)),
        (0x08, minus(7) % 5),
        (0x09, minus(7 * 32)),
        (0x0a, minus(1)),
        (0x0b, minus(7) >> 5),
        (0x0f, minus(7) & 5),
        (0x10, minus(7) | 5),
        (0x11, minus(7) ^ 5),
        (0x13, 0),
        (0x14, 1),
        (0x15, 0),
    ];
    for (opcode, expected) in cases {
        assert_eq!(of_two(&[opcode]), expected, "opcode {opcode:#x}");
    }
    assert_eq!(of_two(&[0x0e]), 0, "log_not");
    assert_eq!(of_two(&[0x12]), !5, "bit_not");
    assert_eq!(of_two(&[0x29, 0x16, 4]), minus(7), "ext: bit 3 of ...1001 is set");
    assert_eq!(of_two(&[0x29, 0x16, 3]), 1, "ext: bit 2 is not");
    assert_eq!(of_two(&[0x29, 0x2a, 4]), 9, "zero_ext");
    assert_eq!(of_two(&[0x29, 0x2a, 64]), minus(7), "zero_ext of all bits");
}

#[test]
fn shifts_by_the_width_and_more() {
    for shift in [64, 200] {
        for (opcode, expected) in [(0x09, 0), (0x0a, u64::MAX), (0x0b, 0)] {
            assert_eq!(value(&[0x26, 0, 2, 0x22, shift, opcode, 0x27]).unwrap(), expected, "{opcode:#x} by {shift}");
        }
    }
}

#[test]
fn the_stack_is_moved_about() {
    assert_eq!(of_two(&[0x28, 0x02]), 10, "dup");
    assert_eq!(of_two(&[0x2b]), -7_i64 as u64, "swap");
    assert_eq!(of_two(&[0x32, 1]), -7_i64 as u64, "pick");
    // -7 5 9 becomes 9 -7 5.
    assert_eq!(of_two(&[0x22, 9, 0x33]), 5, "rot");
    assert_eq!(of_two(&[0x22, 9, 0x33, 0x29]), -7_i64 as u64, "rot");
    assert_eq!(of_two(&[0x22, 9, 0x33, 0x29, 0x29]), 9, "rot");
}

#[test]
fn constants_registers_and_memory() {
    assert_eq!(value(&[0x22, 0xff, 0x27]).unwrap(), 0xff);
    assert_eq!(value(&[0x23, 0x12, 0x34, 0x27]).unwrap(), 0x1234);
    assert_eq!(value(&[0x24, 0x80, 0, 0, 1, 0x27]).unwrap(), 0x8000_0001);
    assert_eq!(value(&[0x25, 1, 2, 3, 4, 5, 6, 7, 8, 0x27]).unwrap(), 0x0102_0304_0506_0708);
    for (opcode, expected) in [(0x17, 0x88), (0x18, 0x7788), (0x19, 0x5566_7788), (0x1a, 0x1122_3344_5566_7788)] {
        assert_eq!(value(&[0x26, 0, 0, opcode, 0x27]).unwrap(), expected);
    }
}

#[test]
fn jumps_choose() {
    // if x1 goto 10; 1; goto 12; 10: 2; 12: end
    let code = |register| [0x26, 0, register, 0x20, 0, 11, 0x22, 1, 0x21, 0, 13, 0x22, 2, 0x27];
    assert_eq!(value(&code(1)).unwrap(), 2);
    let mut zero = Fake::new();
    zero.registers.insert(1, 0);
    let outcome = Expression::condition(code(1).to_vec()).unwrap().evaluate(&mut zero).unwrap();
    assert_eq!(outcome.value, 1);
}

#[test]
fn what_fails_when_it_is_evaluated() {
    for opcode in 0x05..=0x08 {
        assert_eq!(value(&[0x22, 1, 0x22, 0, opcode, 0x27]), Err(EvalError::DivisionByZero { at: 4 }));
    }
    // i64::MIN / -1 has no 64-bit quotient.
    let least = [0x22, 1, 0x22, 63, 0x09, 0x22, 0, 0x12, 0x05, 0x27];
    assert_eq!(value(&least).unwrap(), 1 << 63);
    assert!(matches!(value(&[0x22, 8, 0x17, 0x27]), Err(EvalError::Memory { address: 8, length: 1, .. })));
    assert!(matches!(value(&[0x26, 0, 9, 0x27]), Err(EvalError::Register { number: 9, .. })));
    assert_eq!(value(&[0x21, 0, 0]), Err(EvalError::Steps), "an endless loop ends");
    // 0: x0; 3: ref8; 4: pop; 5: goto 0
    assert_eq!(value(&[0x26, 0, 0, 0x17, 0x29, 0x21, 0, 0]), Err(EvalError::Reads));
}

fn refused(bytes: &[u8], expected: ExpressionError) {
    assert_eq!(Expression::condition(bytes.to_vec()).unwrap_err(), expected, "{bytes:x?}");
}

#[test]
fn what_is_refused_when_it_arrives() {
    refused(&[], ExpressionError::Empty);
    refused(&[0x27; MAX_LENGTH + 1], ExpressionError::TooLong { length: MAX_LENGTH + 1 });
    // Tracing, floating point, trace state variables, and what is no opcode at all.
    for opcode in [0x00, 0x01, 0x0c, 0x0d, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x35, 0xff]
    {
        refused(&[0x22, 1, opcode], ExpressionError::Opcode { at: 2, opcode });
    }
    refused(&[0x22, 1, 0x25, 0], ExpressionError::Truncated { at: 2 });
    refused(&[0x22, 1, 0x22, 1, 0x20, 0, 1, 0x27], ExpressionError::Jump { at: 4, target: 1 });
    refused(&[0x22, 1, 0x20, 0, 6, 0x27], ExpressionError::Jump { at: 2, target: 6 });
    refused(&[0x22, 1, 0x02, 0x27], ExpressionError::Underflow { at: 2, height: 1, needed: 2 });
    refused(&[0x27], ExpressionError::Underflow { at: 0, height: 0, needed: 1 });
    refused(&[0x22, 1, 0x32, 1, 0x27], ExpressionError::Underflow { at: 2, height: 1, needed: 2 });
    let high: Vec<u8> = [0x22, 1].repeat(MAX_STACK + 1);
    refused(&high, ExpressionError::Overflow { at: 2 * MAX_STACK });
    // A loop that leaves a value each time around.
    refused(&[0x22, 1, 0x21, 0, 0], ExpressionError::Heights { at: 0, one: 0, other: 1 });
    refused(&[0x22, 1], ExpressionError::NoEnd);
    refused(&[0x26, 0, 34, 0x27], ExpressionError::Register { at: 0, number: 34 });
    refused(&[0x26, 0x7f, 0xff, 0x27], ExpressionError::Register { at: 0, number: 0x7fff });
    for bits in [0, 65] {
        refused(&[0x22, 1, 0x16, bits, 0x27], ExpressionError::Bits { at: 2, bits });
        refused(&[0x22, 1, 0x2a, bits, 0x27], ExpressionError::Bits { at: 2, bits });
    }
    refused(&[0x22, 0, 0x22, 0, 0x34, 0, 0, 1, 0, 0x27], ExpressionError::Prints { at: 4 });
}

fn printed(text: &str, operands: &[Operand]) -> String {
    message(text, operands).unwrap().evaluate(&mut Fake::new()).unwrap().text
}

#[test]
fn texts() {
    let (five, minus_seven) = (Operand::Register(1), Operand::Register(2));
    assert_eq!(printed("write\\n", &[]), "write\n");
    assert_eq!(printed("%d of %u, %x", &[minus_seven, five, five]), "-7 of 5, 5");
    assert_eq!(printed("%u %lu %hhx", &[minus_seven; 3]), format!("{} {} f9", -7_i32 as u32, -7_i64 as u64));
    assert_eq!(
        printed("%lld|%5d|%-5d|%05d|%+d", &[minus_seven, five, five, minus_seven, five]),
        "-7|    5|5    |-0007|+5"
    );
    assert_eq!(
        printed("%#lx %p %#o %X", &[minus_seven, five, five, minus_seven]),
        "0xfffffffffffffff9 0x5 05 FFFFFFF9"
    );
    assert_eq!(printed("100 %% \\\"\\t\\101\\\\", &[]), "100 % \"\tA\\");
    assert_eq!(printed("%s!", &[Operand::Register(SP)]), "vfs_write!");
    assert_eq!(printed("%c", &[Operand::At(SP, Width::Byte)]), "v");
    assert_eq!(printed("%lx", &[Operand::Memory(0x1000, Width::Word)]), "55667788");
    let wide = format!("%{MAX_TEXT}d");
    assert_eq!(printed(&format!("{wide}{wide}"), &[five, five]).len(), MAX_TEXT + 3, "cut, and said so");
}

#[test]
fn a_string_that_does_not_end_is_cut() {
    let mut endless = Fake::new();
    for at in 0x1008..0x2000 {
        endless.memory.insert(at, b'a');
    }
    let text = message("%s", &[Operand::Register(SP)]).unwrap().evaluate(&mut endless).unwrap().text;
    assert_eq!(text, "a".repeat(256) + "...");
}

#[test]
fn texts_that_are_refused() {
    let problem = |text: &str, count| match message(text, &vec![Operand::Register(0); count]) {
        Err(ExpressionError::Format { problem, .. }) => problem,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(problem("%n", 1), FormatError::Conversion { found: b'n' });
    assert_eq!(problem("%f", 1), FormatError::Conversion { found: b'f' });
    assert_eq!(problem("%*d", 1), FormatError::Conversion { found: b'*' });
    assert_eq!(problem("%", 0), FormatError::Conversion { found: 0 });
    assert_eq!(problem("\\q", 0), FormatError::Escape { found: b'q' });
    assert_eq!(problem("\\", 0), FormatError::Escape { found: 0 });
    assert_eq!(problem("%9999d", 1), FormatError::Width);
    assert_eq!(problem("%d", 2), FormatError::Arguments { taken: 1, given: 2 });
    assert_eq!(problem("%d %d", 1), FormatError::Arguments { taken: 2, given: 1 });
    assert_eq!(problem("a\0b", 0), FormatError::Unterminated);
}

#[test]
fn comparisons() {
    use Comparison::*;
    let seven = -7_i64 as u64;
    let holds = |operand, comparison, constant| {
        compare(operand, comparison, constant).unwrap().evaluate(&mut Fake::new()).unwrap().value
    };
    for (comparison, constant, expected) in [
        (Equal, 5, 1),
        (Equal, 6, 0),
        (NotEqual, 5, 0),
        (NotEqual, 6, 1),
        (Below, 5, 0),
        (Below, 6, 1),
        (BelowOrEqual, 5, 1),
        (BelowOrEqual, 4, 0),
        (Above, 5, 0),
        (Above, 4, 1),
        (AboveOrEqual, 5, 1),
        (AboveOrEqual, 6, 0),
        (Less, seven, 0),
        (Below, seven, 1),
        (Greater, seven, 1),
        (Above, seven, 0),
    ] {
        assert_eq!(holds(Operand::Register(1), comparison, constant), expected, "5 {comparison:?} {constant:#x}");
    }
    assert_eq!(holds(Operand::At(0, Width::Half), Equal, 0x7788), 1);
    assert!(matches!(compare(Operand::Register(40), Equal, 0), Err(ExpressionError::Register { number: 40, .. })));
}

#[test]
fn registers_have_one_number_each() {
    let some =
        [Reg::X(0), Reg::X(30), Reg::Pc, Reg::Pstate, Reg::SpEl0, Reg::ElrEl1, Reg::Sys(SysReg::TTBR0_EL1), Reg::Fpcr];
    for reg in some {
        assert_eq!(number_of(reg).and_then(reg_of), Some(reg));
    }
    assert_eq!(number_of(Reg::V(0)), None);
    assert_eq!(reg_of(SP), None);
    // The client calls X0 40: `reg 40; end`.
    let renumbered = renumber(&[0x26, 0, 40, 0x27], |theirs| theirs.checked_sub(40)).unwrap();
    assert_eq!(renumbered, [0x26, 0, 0, 0x27]);
    let error = renumber(&[0x26, 0, 4, 0x27], |theirs| theirs.checked_sub(40)).unwrap_err();
    assert_eq!(error, ExpressionError::Register { at: 0, number: 4 });
}

/// Instructions of every kind, so that chance finds programs that are verified.
fn instruction() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0x02..=0x0b_u8).prop_map(|op| vec![op]),
        prop::sample::select(vec![0x0e_u8, 0x0f, 0x13, 0x14, 0x17, 0x1a, 0x27, 0x28, 0x29, 0x2b, 0x33])
            .prop_map(|op| vec![op]),
        any::<u8>().prop_map(|n| vec![0x22, n]),
        (0..34_u8).prop_map(|n| vec![0x26, 0, n]),
        (0..3_u8).prop_map(|n| vec![0x32, n]),
        (any::<bool>(), 0..40_u8).prop_map(|(always, to)| vec![0x20 + u8::from(always), 0, to]),
    ]
}

proptest! {
    /// Whatever was verified keeps to its bounds: an evaluation ends, and the stack is as the verification says.
    #[test]
    fn what_was_verified_keeps_its_promise(program in prop::collection::vec(instruction(), 1..16)) {
        let mut bytes = program.concat();
        bytes.push(0x27);
        if let Ok(expression) = Expression::command(bytes) {
            let mut machine = Fake::new();
            machine.registers.extend((0..34).map(|n| (n, u64::from(n) * 0x40)));
            let outcome = expression.evaluate(&mut machine);
            prop_assert!(!matches!(outcome, Err(EvalError::Unverified { .. })), "{outcome:?}");
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = renumber(&bytes, Some);
        for expression in [Expression::condition(bytes.clone()), Expression::command(bytes)].into_iter().flatten() {
            let outcome = expression.evaluate(&mut Fake::new());
            prop_assert!(!matches!(outcome, Err(EvalError::Unverified { .. })), "{outcome:?}");
        }
    }

    #[test]
    fn any_text_is_answered(text in "[%a-z0-9\\\\*#]{0,12}", count in 0..3_usize) {
        if let Ok(command) = message(&text, &vec![Operand::Register(1); count]) {
            let _ = command.evaluate(&mut Fake::new());
        }
    }
}
