package main

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// A folder keeps blobs, one file for each:
//
//	DATA/store_id    names this store for ever
//	DATA/blobs/REF   a blob: whole, verified, and synced
//	DATA/incoming/*  what is being received; deleted at the start
//
// A file comes into blobs/ by a rename, after its bytes were verified and synced, and is confirmed after the folder was synced,
// too. So a crash before the rename leaves a file in incoming/, which nobody reads, and a crash after it leaves the whole blob.
type folder struct {
	id, blobs, incoming string
	commit              sync.Mutex // one rename at a time, so that each call knows whether its blob was new
}

// openFolder opens the folder, or makes it. No other process may have it open.
func openFolder(data string) (*folder, error) {
	f := &folder{blobs: filepath.Join(data, "blobs"), incoming: filepath.Join(data, "incoming")}
	if err := os.RemoveAll(f.incoming); err != nil {
		return nil, err
	}
	for _, path := range []string{f.blobs, f.incoming} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return nil, err
		}
	}
	name := filepath.Join(data, "store_id")
	id, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		id = []byte(rand.Text())
		err = f.writeID(name, id)
	}
	if err != nil {
		return nil, err
	}
	f.id = strings.TrimSpace(string(id))
	// The folder and its name in the folder above are to survive a crash as well.
	return f, errors.Join(syncFile(data), syncFile(filepath.Dir(filepath.Clean(data))))
}

func (f *folder) writeID(name string, id []byte) error {
	draft, err := f.create()
	if err != nil {
		return err
	}
	defer draft.discard()
	if _, err := draft.Write(id); err != nil {
		return err
	}
	if err := draft.Sync(); err != nil {
		return err
	}
	return os.Rename(draft.Name(), name)
}

// A draft is a blob that is being received.
type draft struct{ *os.File }

func (f *folder) create() (draft, error) {
	file, err := os.CreateTemp(f.incoming, "")
	return draft{file}, err
}

// discard closes the draft, and deletes it where it was not committed.
func (d draft) discard() {
	d.Close()
	os.Remove(d.Name())
}

// keep commits a draft whose bytes were verified: when it returns, the blob is durable. A blob that is there already stays as it
// is, unless it is to be replaced.
func (f *folder) keep(d draft, ref string, replace bool) (wasNew bool, err error) {
	if err := d.Sync(); err != nil {
		return false, err
	}
	f.commit.Lock()
	defer f.commit.Unlock()
	_, held, err := f.size(ref)
	if err != nil {
		return false, err
	}
	if !held || replace {
		if err := os.Rename(d.Name(), filepath.Join(f.blobs, ref)); err != nil {
			return false, err
		}
	}
	// Also where it was there: the process that renamed it may have ended before this.
	return !held, syncFile(f.blobs)
}

// size tells how large a blob is, and whether it is there.
func (f *folder) size(ref string) (size uint64, held bool, err error) {
	info, err := os.Stat(filepath.Join(f.blobs, ref))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	return uint64(info.Size()), true, nil
}

// open opens a blob for reading; the error is fs.ErrNotExist where it is not there.
func (f *folder) open(ref string) (*os.File, error) {
	return os.Open(filepath.Join(f.blobs, ref))
}

// refs lists the refs after `after` up to `until`, ascending, all in memory: a store of many millions needs an index.
func (f *folder) refs(after, until string) ([]string, error) {
	entries, err := os.ReadDir(f.blobs) // sorted by name, byte by byte
	if err != nil {
		return nil, err
	}
	var refs []string
	for _, entry := range entries {
		if ref := entry.Name(); isRef(ref) && ref > after && (until == "" || ref <= until) {
			refs = append(refs, ref)
		}
	}
	return refs, nil
}

// syncFile makes durable what a file holds, or which files a folder holds.
func syncFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}
