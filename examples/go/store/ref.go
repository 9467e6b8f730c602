package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"strings"
)

// functions are the digest functions that this store takes, by the names that refs have for them. The protocol's fifth, blake3,
// is not in Go's own library.
var functions = map[string]func() hash.Hash{
	"sha1":   sha1.New,
	"sha224": sha256.New224,
	"sha256": sha256.New,
	"sha512": sha512.New,
}

// digestOf returns a new digest for what this ref names; nil where the text is not exactly a ref.
func digestOf(ref string) hash.Hash {
	function, digits, _ := strings.Cut(ref, "-")
	create, known := functions[function]
	if !known {
		return nil
	}
	digest := create()
	bytes, err := hex.DecodeString(digits)
	if err != nil || len(bytes) != digest.Size() || strings.ToLower(digits) != digits {
		return nil
	}
	return digest
}

func isRef(text string) bool { return digestOf(text) != nil }

// refOf is the ref of the bytes that went through a digest, by the same function as this ref.
func refOf(digest hash.Hash, ref string) string {
	function, _, _ := strings.Cut(ref, "-")
	return function + "-" + hex.EncodeToString(digest.Sum(nil))
}
