//! Links of an HTML index.

use html5gum::emitters::callback::{CallbackEmitter, CallbackEvent};
use html5gum::{IoReader, Span, Tokenizer};

use super::href::Base;
use super::page::Page;
use super::sink::{Halt, Sink};

/// Gives every child that the page links to `sink`.
pub(super) fn parse(page: Page, base: &Base, sink: &mut Sink) -> Result<(), Halt> {
    let (mut is_link, mut is_href) = (false, false);
    let mut emitter = CallbackEmitter::new(move |event: CallbackEvent<'_>, _: Span<()>| {
        match event {
            CallbackEvent::OpenStartTag { name } => is_link = name == b"a",
            CallbackEvent::AttributeName { name } => is_href = is_link && name == b"href",
            CallbackEvent::AttributeValue { value } if is_href => {
                is_href = false;
                return Some(value.to_vec());
            }
            _ => {}
        }
        None
    });
    // Or a "<a href" within a script would count.
    emitter.naively_switch_states(true);
    for href in Tokenizer::new_with_emitter(IoReader::new(page), emitter) {
        if let Some(child) = base.child(&href.map_err(Halt::page)?) {
            sink.offer(child.name, child.kind)?;
        }
    }
    Ok(())
}
