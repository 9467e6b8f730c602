use super::{BlobRef, DigestFunction, Mismatch, RefError, Verifier};
use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};

const EMPTY_SHA256: &str = "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn published_digests_of_abc() {
    let expected = [
        "blake3-6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
        "sha1-a9993e364706816aba3e25717850c26c9cd0d89d",
        "sha224-23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
        "sha256-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sha512-ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    ];
    for (function, text) in DigestFunction::ALL.into_iter().zip(expected) {
        assert_eq!(function.ref_of(b"abc").to_string(), text);
        assert_eq!(text.parse::<BlobRef>().unwrap(), function.ref_of(b"abc"));
    }
    assert_eq!(DigestFunction::Sha256.ref_of(b"").to_string(), EMPTY_SHA256);
}

#[test]
fn everything_but_an_exact_ref_is_refused() {
    let hex = &EMPTY_SHA256["sha256-".len()..];
    let wrong = [
        String::new(),
        "-".into(),
        "sha256".into(),
        "sha256-".into(),
        hex.into(),
        EMPTY_SHA256.to_uppercase(),
        format!("sha256-{}", hex.to_uppercase()),
        format!("SHA256-{hex}"),
        format!("md5-{}", &hex[..32]),
        format!("sha256-{}", &hex[1..]),
        format!("sha256-{hex}0"),
        format!("sha1-{hex}"),
        format!(" {EMPTY_SHA256}"),
        format!("{EMPTY_SHA256}\n"),
        format!("sha256-../{}", &hex[3..]),
        "../../etc/passwd".into(),
        format!("sha256-{}\0", &hex[1..]),
        format!("sha256-{}é", &hex[2..]),
        format!("sha256-{}g", &hex[1..]),
        "a".repeat(1 << 20),
        format!("sha256-{}", "0".repeat(1 << 20)),
        "\u{1b}[31m-x".into(),
    ];
    for text in wrong {
        let error = text.parse::<BlobRef>().expect_err(&text[..text.len().min(80)]);
        let message = error.to_string();
        assert!(message.len() < 300, "{message}");
        assert!(!message.contains('\u{1b}') && !message.contains('\0') && !message.contains('\n'), "{message}");
    }
    assert_eq!("".parse::<BlobRef>(), Err(RefError::Empty));
}

#[test]
fn verifier_tells_short_long_and_wrong_apart() {
    let blob = DigestFunction::Sha256.ref_of(b"abc");
    let mut short = Verifier::new(blob, Some(3));
    short.update(b"ab").unwrap();
    assert_eq!(short.finish(), Err(Mismatch::TooShort { stated: 3, received: 2 }));
    let mut long = Verifier::new(blob, Some(3));
    assert_eq!(long.update(b"abcd"), Err(Mismatch::TooLong { stated: 3 }));
    let mut wrong = Verifier::new(blob, None);
    wrong.update(b"abd").unwrap();
    assert!(matches!(wrong.finish(), Err(Mismatch::Digest { received: 3, .. })));
    let mut right = Verifier::new(blob, Some(3));
    right.update(b"a").unwrap();
    right.update(b"bc").unwrap();
    assert_eq!(right.finish(), Ok(3));
}

fn any_ref() -> impl Strategy<Value = BlobRef> {
    (0..5usize, any::<[u8; 64]>())
        .prop_map(|(at, bytes)| {
            let function = DigestFunction::ALL[at];
            BlobRef::new(function, &bytes[..function.digest_len()]).unwrap()
        })
        .no_shrink()
}

proptest! {
    #[test]
    fn text_and_key_round_trip(blob in any_ref()) {
        prop_assert_eq!(blob.to_string().parse::<BlobRef>().unwrap(), blob);
        prop_assert_eq!(BlobRef::from_key(&blob.to_key()).unwrap(), blob);
    }

    #[test]
    fn order_is_that_of_the_text_and_of_the_key(a in any_ref(), b in any_ref()) {
        prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        prop_assert_eq!(a.cmp(&b), a.to_key().cmp(&b.to_key()));
    }

    #[test]
    fn no_text_panics(text in ".*") {
        if let Ok(blob) = text.parse::<BlobRef>() {
            prop_assert_eq!(blob.to_string(), text);
        }
    }
}
