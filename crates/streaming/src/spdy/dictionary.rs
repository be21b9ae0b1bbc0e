//! The dictionary that primes header compression: SPDY/3 draft, section 2.6.10.1.
//!
//! It is one byte string: words, each after its length in four bytes, then a run of text without lengths. Both ends
//! must have exactly these 1423 bytes; zlib compares their Adler-32.

use std::sync::LazyLock;

/// The words that stand after their length.
#[rustfmt::skip]
const WORDS: [&str; 64] = [
    "options", "head", "post", "put", "delete", "trace", "accept", "accept-charset", "accept-encoding", "accept-language",
    "accept-ranges", "age", "allow", "authorization", "cache-control", "connection", "content-base", "content-encoding",
    "content-language", "content-length", "content-location", "content-md5", "content-range", "content-type", "date", "etag", "expect",
    "expires", "from", "host", "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified",
    "location", "max-forwards", "pragma", "proxy-authenticate", "proxy-authorization", "range", "referer", "retry-after", "server",
    "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via", "warning", "www-authenticate", "method", "get",
    "status", "200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive",
];

/// The text after them; its first word is the last one with a length.
const TAIL: &str = concat!(
    "\0\0\0\x06origin",
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden",
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,",
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
);

/// Its Adler-32, which stands in the first bytes of every direction's header stream.
pub(super) const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

/// The whole of it.
pub(super) static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS {
        bytes.extend_from_slice(&(word.len() as u32).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_dictionary_every_other_implementation_has() {
        assert_eq!(DICTIONARY.len(), 1423);
        let id = flate2::Compress::new(flate2::Compression::default(), true).set_dictionary(&DICTIONARY).unwrap();
        assert_eq!(id, DICTIONARY_ID);
    }
}
