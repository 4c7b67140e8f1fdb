//! What gdb appends to a `Z` packet: conditions, and commands in the place of a stop.
//!
//! ```text
//!   ;X LENGTH,BYTES X LENGTH,BYTES ...      conditions
//!   ;cmds:PERSIST,X LENGTH,BYTES ...        commands
//! ```
//!
//! gdb puts nothing between the expressions of a list, the manual allows a semicolon. PERSIST asks for commands that stay
//! when gdb goes away; here everything goes with its client, and moves with the VM.

use super::{number_of, split_once};

/// Longest list that is looked at; a session takes fewer.
const MAX_EXPRESSIONS: usize = 256;

/// Bytecode as the client sent it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Extension {
    pub conditions: Vec<Vec<u8>>,
    pub commands: Vec<Vec<u8>>,
}

/// Parses what is behind the length in a `Z` packet, its first semicolon included.
pub(super) fn parse(text: &[u8]) -> Option<Extension> {
    let mut extension = Extension::default();
    let mut in_commands = false;
    let mut rest = text;
    while !rest.is_empty() {
        rest = rest.strip_prefix(b";").unwrap_or(rest);
        if let Some(commands) = rest.strip_prefix(b"cmds:") {
            let (persist, expressions) = split_once(commands, b',')?;
            number_of(persist)?;
            in_commands = true;
            rest = expressions;
        }
        let (length, behind) = split_once(rest.strip_prefix(b"X")?, b',')?;
        let digits = usize::try_from(number_of(length)?).ok()?.checked_mul(2)?;
        let (bytes, behind) = behind.split_at_checked(digits)?;
        let list = if in_commands { &mut extension.commands } else { &mut extension.conditions };
        if list.len() == MAX_EXPRESSIONS {
            return None;
        }
        list.push(unhex(bytes)?);
        rest = behind;
    }
    Some(extension)
}

fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    digits.chunks(2).map(|pair| u8::try_from(number_of(pair)?).ok()).collect()
}
