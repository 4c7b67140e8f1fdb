//! Conditions, ignore counts and messages: those of a `Z` packet, and those that are set with `monitor`.

use super::GuestTarget;
use super::monitor::parse_number;
use crate::description::{Description, GdbArch};
use crate::gate::Extension;
use crate::vm::{DebugVm, VmError};
use guest_debug::agent::{self, Comparison, Expression, ExpressionError, Operand, Width};
use guest_debug::{Breakpoint, Gva, HitRule};
use std::fmt::Write as _;

const USAGE_CONDITION: &str = "\
usage: monitor condition ADDR OPERAND COMPARISON NUMBER, or ADDR alone for none
  OPERAND     $REGISTER, *ADDRESS or *$REGISTER; memory has 8 bytes, or 1, 2, 4 with *ADDRESS:4
  COMPARISON  == != < <= > >= without sign, s< s> with sign
";
const USAGE_MESSAGE: &str = "\
usage: monitor message ADDR \"TEXT\" OPERAND ..., or ADDR alone for none
  TEXT        as of printf: %d %u %lu %lx %s %c ..., \\n
  OPERAND     as of monitor condition
";
const USAGE_IGNORE: &str = "usage: monitor ignore ADDR COUNT\n";

impl<A: GdbArch, V: DebugVm<A>> GuestTarget<'_, A, V> {
    /// What a `Z` packet says of its breakpoint's hits. Without an extension an earlier one is over, but not what the
    /// user has set by hand.
    pub(crate) fn set_extension(&mut self, breakpoint: Breakpoint, extension: &Extension) -> Result<(), VmError> {
        let none = extension.conditions.is_empty() && extension.commands.is_empty();
        if none && (self.client.by_hand.contains(&breakpoint) || !self.client.ruled.contains(&breakpoint)) {
            return Ok(());
        }
        let rule = self.rule(extension).map_err(|error| VmError::BadBreakpoint(error.to_string()))?;
        self.vm.set_rule(breakpoint, rule)?;
        self.client.by_hand.remove(&breakpoint);
        if none {
            self.client.ruled.remove(&breakpoint);
        } else {
            self.client.ruled.insert(breakpoint);
        }
        Ok(())
    }

    fn rule(&self, extension: &Extension) -> Result<HitRule, ExpressionError> {
        let ours = |bytes: &Vec<u8>| agent::renumber(bytes, |number| number_of(&self.description, number.into()));
        let conditions = extension.conditions.iter().map(|bytes| Expression::condition(ours(bytes)?));
        let commands = extension.commands.iter().map(|bytes| Expression::command(ours(bytes)?));
        Ok(HitRule { conditions: conditions.collect::<Result<_, _>>()?, commands: commands.collect::<Result<_, _>>()? })
    }

    pub(super) fn set_condition(&mut self, arguments: &str) -> Result<String, VmError> {
        let Some((address, rest)) = address_of(arguments) else { return Ok(USAGE_CONDITION.to_owned()) };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let conditions = match words[..] {
            [] => Vec::new(),
            [operand, comparison, number] => {
                let parts = (self.operand(operand), comparison_of(comparison), signed_number(number));
                let (Some(operand), Some(comparison), Some(number)) = parts else {
                    return Ok(USAGE_CONDITION.to_owned());
                };
                match agent::compare(operand, comparison, number) {
                    Ok(condition) => vec![condition],
                    Err(error) => return Ok(format!("{error}\n")),
                }
            }
            _ => return Ok(USAGE_CONDITION.to_owned()),
        };
        self.by_hand(address, |rule| HitRule { conditions: conditions.clone(), ..rule })
    }

    pub(super) fn set_message(&mut self, arguments: &str) -> Result<String, VmError> {
        let Some((address, rest)) = address_of(arguments) else { return Ok(USAGE_MESSAGE.to_owned()) };
        let commands = if rest.is_empty() {
            Vec::new()
        } else {
            let Some((text, operands)) = quoted(rest) else { return Ok(USAGE_MESSAGE.to_owned()) };
            let words = operands.split([' ', ',']).filter(|word| !word.is_empty());
            let Some(operands) = words.map(|word| self.operand(word)).collect::<Option<Vec<_>>>() else {
                return Ok(USAGE_MESSAGE.to_owned());
            };
            match agent::message(text, &operands) {
                Ok(command) => vec![command],
                Err(error) => return Ok(format!("{error}\n")),
            }
        };
        self.by_hand(address, |rule| HitRule { commands: commands.clone(), ..rule })
    }

    pub(super) fn set_ignore_count(&mut self, arguments: &str) -> Result<String, VmError> {
        let Some((address, count)) = address_of(arguments) else { return Ok(USAGE_IGNORE.to_owned()) };
        let Some(count) = parse_number(count) else { return Ok(USAGE_IGNORE.to_owned()) };
        let mut text = String::new();
        for breakpoint in self.at(address)? {
            self.vm.set_ignore_count(breakpoint, count)?;
            let _ = writeln!(text, "{breakpoint}: the next {count} hits are passed");
        }
        Ok(text)
    }

    pub(super) fn list_hits(&mut self, _: &str) -> Result<String, VmError> {
        let mut text = String::new();
        for info in self.vm.rules()? {
            let (rule, counts) = (info.rule, info.counts);
            let _ = writeln!(
                text,
                "{}: reached {} times, {} hits, {} to ignore; {} conditions, {} messages",
                info.breakpoint,
                counts.reached,
                counts.hits,
                counts.ignore,
                rule.conditions.len(),
                rule.commands.len()
            );
        }
        if text.is_empty() {
            text.push_str("no breakpoint has a condition, a message or an ignore count\n");
        }
        Ok(text)
    }

    /// Changes the rule of every breakpoint at an address, for as long as the client is there.
    fn by_hand(&mut self, address: u64, change: impl Fn(HitRule) -> HitRule) -> Result<String, VmError> {
        let mut text = String::new();
        let rules = self.vm.rules()?;
        for breakpoint in self.at(address)? {
            let old = rules.iter().find(|info| info.breakpoint == breakpoint).map(|info| info.rule.clone());
            let new = change(old.unwrap_or_default());
            let _ =
                writeln!(text, "{breakpoint}: {} conditions, {} messages", new.conditions.len(), new.commands.len());
            self.vm.set_rule(breakpoint, new)?;
            self.client.by_hand.insert(breakpoint);
        }
        Ok(text)
    }

    /// The breakpoints at an address that the server has seen. gdb inserts them when it resumes, so before that they are
    /// those that there can be.
    fn at(&self, address: u64) -> Result<Vec<Breakpoint>, VmError> {
        let known = self.client.inserted.iter().copied();
        let inserted = self.vm.breakpoints()?.into_iter().map(|inserted| inserted.breakpoint);
        let ruled = self.vm.rules()?.into_iter().map(|info| info.breakpoint);
        let is_there = |breakpoint: &Breakpoint| match *breakpoint {
            Breakpoint::Hardware(at) | Breakpoint::Software(at) => at.0 == address,
            Breakpoint::Watch { address: at, .. } => at.0 == address,
        };
        let mut list: Vec<_> = known.chain(inserted).chain(ruled).filter(is_there).collect();
        if list.is_empty() {
            list = vec![Breakpoint::Hardware(Gva(address)), Breakpoint::Software(Gva(address))];
        }
        list.sort_unstable();
        list.dedup();
        Ok(list)
    }

    /// `$REGISTER`, `*ADDRESS` or `*$REGISTER`, the latter two with a width behind a colon.
    fn operand(&self, text: &str) -> Option<Operand> {
        let register = |name: &str| {
            let number = self.description.number(name.strip_prefix('$')?)?;
            number_of(&self.description, number)
        };
        let Some(place) = text.strip_prefix('*') else { return register(text).map(Operand::Register) };
        let (place, width) = match place.split_once(':') {
            None | Some((_, "8")) => (place.split(':').next()?, Width::Double),
            Some((place, "4")) => (place, Width::Word),
            Some((place, "2")) => (place, Width::Half),
            Some((place, "1")) => (place, Width::Byte),
            Some(_) => return None,
        };
        match register(place) {
            Some(number) => Some(Operand::At(number, width)),
            None => parse_number(place).map(|address| Operand::Memory(address, width)),
        }
    }
}

/// The session's number of a register that the client has under `number`, if expressions can read it.
fn number_of<A: GdbArch>(description: &Description<A>, number: usize) -> Option<u16> {
    A::expression_number(description.entry(number)?.source)
}

/// The address that arguments begin with, and the rest of them.
fn address_of(arguments: &str) -> Option<(u64, &str)> {
    let (address, rest) = arguments.split_once(char::is_whitespace).unwrap_or((arguments, ""));
    Some((parse_number(address)?, rest.trim()))
}

fn comparison_of(text: &str) -> Option<Comparison> {
    Some(match text {
        "==" => Comparison::Equal,
        "!=" => Comparison::NotEqual,
        "<" => Comparison::Below,
        "<=" => Comparison::BelowOrEqual,
        ">" => Comparison::Above,
        ">=" => Comparison::AboveOrEqual,
        "s<" => Comparison::Less,
        "s>" => Comparison::Greater,
        _ => return None,
    })
}

/// A number, which may be negative.
fn signed_number(text: &str) -> Option<u64> {
    match text.strip_prefix('-') {
        Some(digits) => parse_number(digits).map(u64::wrapping_neg),
        None => parse_number(text),
    }
}

/// The text between the quotation mark that `text` begins with and the next one without a backslash, and what is behind it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut escaped = false;
    let end = inner.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    Some((inner.get(..end)?, inner.get(end + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_end_at_the_first_bare_quotation_mark() {
        assert_eq!(quoted("\"a b\" $x0"), Some(("a b", " $x0")));
        assert_eq!(quoted(r#""say \"a\\" $x0"#), Some((r#"say \"a\\"#, " $x0")));
        assert_eq!(quoted("a"), None);
        assert_eq!(quoted("\"a"), None);
    }

    #[test]
    fn numbers_may_be_negative() {
        assert_eq!(signed_number("-1"), Some(u64::MAX));
        assert_eq!(signed_number("0x10"), Some(16));
        assert_eq!(signed_number("x"), None);
    }
}
