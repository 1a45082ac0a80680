//! What clients ask in the handshake, and what they are told.

use super::*;

const OFFER: Offer<'_> = Offer { name: "vm.raw", size: 1 << 30, read_only: false };
const GO: u32 = 7;
const SET_CONTEXT: u32 = 10;

fn said(step: Step) -> Vec<u8> {
    match step {
        Step::Say(bytes) | Step::Begin(bytes) | Step::End(bytes) => bytes,
    }
}

/// Kinds and data of the answers in some bytes.
fn answers(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let mut words = Words(bytes);
        assert_eq!(words.u64(), Some(OPTION_REPLY));
        words.u32().unwrap();
        let kind = words.u32().unwrap();
        let len = words.u32().unwrap();
        found.push((kind, words.bytes(len as usize).unwrap().to_vec()));
        bytes = words.0;
    }
    found
}

fn kinds(step: Step) -> Vec<u32> {
    answers(&said(step)).into_iter().map(|(kind, _)| kind).collect()
}

fn named(name: &[u8], rest: &[u8]) -> Vec<u8> {
    [&len_of(name).to_be_bytes(), name, rest].concat()
}

#[test]
fn the_first_words_are_those_of_the_protocol() {
    assert_eq!(hello(), b"NBDMAGICIHAVEOPT\0\x03");
    let with_zeroes = client_flags([0, 0, 0, 1]).unwrap();
    assert!(!with_zeroes.no_zeroes && client_flags([0, 0, 0, 3]).unwrap().no_zeroes);
    for bad in [0, 2, 5, u32::MAX] {
        assert_eq!(client_flags(bad.to_be_bytes()), None, "{bad}");
    }
}

#[test]
fn an_option_is_short_and_begins_with_its_magic() {
    let header = |magic: &[u8; 8], len: u32| {
        let bytes = [&magic[..], &3_u32.to_be_bytes(), &len.to_be_bytes()].concat();
        option_header(bytes.try_into().unwrap())
    };
    assert_eq!(header(b"IHAVEOPT", OPTION_DATA_MAX), Some((3, OPTION_DATA_MAX)));
    assert_eq!(header(b"IHAVEOPT", OPTION_DATA_MAX + 1), None);
    assert_eq!(header(b"GETHTTP/", 0), None);
}

#[test]
fn go_tells_size_flags_and_block_sizes_and_begins() {
    let mut agreed = Agreed { structured: true, ..Agreed::default() };
    for name in [&b""[..], b"vm.raw"] {
        let step = answer(GO, &named(name, &[0, 1, 0, 1]), &OFFER, &mut agreed);
        assert!(matches!(step, Step::Begin(_)));
        let answers = answers(&said(step));
        let export = [&[0, 0][..], &(1_u64 << 30).to_be_bytes(), &[0x09, 0xed]].concat();
        assert_eq!(answers[0], (say::INFO, export));
        let sizes = [&[0, 3][..], &[0, 0, 0, 1], &[0, 0, 0x10, 0], &[2, 0, 0, 0]].concat();
        assert_eq!(answers[1], (say::INFO, sizes));
        assert_eq!(answers[2], (say::INFO, [&[0, 1], name].concat()));
        assert_eq!(answers[3], (say::ACK, vec![]));
    }
    let step = answer(6, &named(b"", &[0, 0]), &OFFER, &mut agreed);
    assert!(matches!(step, Step::Say(_)), "INFO asks and goes on");
    let step = answer(GO, &named(b"other", &[0, 0]), &OFFER, &mut agreed);
    assert_eq!(kinds(step), [say::UNKNOWN]);
}

#[test]
fn who_may_only_read_is_offered_nothing_else() {
    let offer = Offer { read_only: true, ..OFFER };
    assert_eq!(offer.flags(&Agreed::default()), 0b1_0000_0111);
}

#[test]
fn the_old_way_to_begin_has_its_padding_unless_it_is_declined() {
    let mut agreed = Agreed::default();
    assert_eq!(said(answer(1, b"vm.raw", &OFFER, &mut agreed)).len(), 134);
    agreed.no_zeroes = true;
    let step = answer(1, b"", &OFFER, &mut agreed);
    assert_eq!(step, Step::Begin([&(1_u64 << 30).to_be_bytes()[..], &[0x09, 0x6d]].concat()));
    assert_eq!(answer(1, b"other", &OFFER, &mut agreed), Step::End(vec![]));
}

#[test]
fn contexts_come_behind_structured_replies_and_the_last_choice_counts() {
    let mut agreed = Agreed::default();
    let one = |query: &[u8]| named(b"", &[&[0, 0, 0, 1], &named(query, b"")[..]].concat());
    let wanted = one(b"base:allocation");
    assert_eq!(kinds(answer(SET_CONTEXT, &wanted, &OFFER, &mut agreed)), [say::INVALID]);
    assert_eq!(kinds(answer(8, b"", &OFFER, &mut agreed)), [say::ACK]);
    let step = answer(SET_CONTEXT, &wanted, &OFFER, &mut agreed);
    let answers = answers(&said(step));
    assert_eq!(answers[0], (say::META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec()));
    assert!(agreed.allocation);
    assert_eq!(kinds(answer(SET_CONTEXT, &one(b"base:"), &OFFER, &mut agreed)), [say::ACK]);
    assert!(!agreed.allocation);
    for query in [one(b"base:"), named(b"vm.raw", &[0; 4])] {
        let listed = kinds(answer(9, &query, &OFFER, &mut agreed));
        assert_eq!(listed, [say::META_CONTEXT, say::ACK]);
    }
    assert!(!agreed.allocation, "a list chooses nothing");
}

#[test]
fn the_others_are_listed_ended_or_not_known() {
    let mut agreed = Agreed::default();
    let listed = answers(&said(answer(3, b"", &OFFER, &mut agreed)));
    assert_eq!(listed[0], (say::SERVER, b"\0\0\0\x06vm.raw".to_vec()));
    assert_eq!(kinds(answer(3, b"x", &OFFER, &mut agreed)), [say::INVALID]);
    assert!(matches!(answer(2, b"x", &OFFER, &mut agreed), Step::End(_)));
    for option in [0, 4, 5, 11, u32::MAX] {
        assert_eq!(kinds(answer(option, b"x", &OFFER, &mut agreed)), [say::UNSUPPORTED]);
    }
}

/// Counts that promise what does not follow, and rests that nobody announced.
#[test]
fn no_bytes_are_taken_for_an_option_that_they_are_not() {
    let mut agreed = Agreed { structured: true, ..Agreed::default() };
    let full = named(b"vm.raw", &[0, 2, 0, 3, 0, 1]);
    for len in 0..full.len() {
        assert_eq!(kinds(answer(GO, &full[..len], &OFFER, &mut agreed)), [say::INVALID], "{len}");
    }
    let many = named(b"", &[0xff; 4]);
    assert_eq!(kinds(answer(SET_CONTEXT, &many, &OFFER, &mut agreed)), [say::INVALID]);
    let more = [&full[..], &[0]].concat();
    assert_eq!(kinds(answer(GO, &more, &OFFER, &mut agreed)), [say::INVALID]);
}

/// Whatever comes, it is answered in whole answers, and nothing begins that was not asked for.
#[test]
fn any_bytes_are_answered() {
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance
    };
    for _ in 0..100_000 {
        let option = u32::try_from(next() % 13).unwrap();
        let len = usize::try_from(next() % 40).unwrap();
        // Small numbers, so that counts and lengths are often nearly right.
        let data: Vec<u8> = (0..len).map(|_| (next() % 97 % 9) as u8).collect();
        let mut agreed = Agreed { structured: next() % 2 == 0, ..Agreed::default() };
        let step = answer(option, &data, &OFFER, &mut agreed);
        let begins = matches!(step, Step::Begin(_));
        // The old way has no answers to look at.
        if option != 1 {
            let last = answers(&said(step)).pop().map(|(kind, _)| kind);
            assert_eq!(begins, option == 7 && last == Some(say::ACK), "{data:?}");
        }
        assert!(agreed.structured || !agreed.allocation);
    }
}
