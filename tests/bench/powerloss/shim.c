/* A disk that forgets what was not synced, and can be full, or turn read-only: an LD_PRELOAD shim for Linux.
 *
 * It lets every change below FAULTSHIM_ROOT happen at once, and writes into FAULTSHIM_JOURNAL how to take it back. Whoever
 * kills the process afterwards reads the journal and decides what of the unsynced changes a disk would have kept (disk.rs).
 * So the file system itself is never out of step with what the process sees, and the shim needs no memory that a kill loses.
 *
 *   FAULTSHIM_ROOT     changes below this absolute path are followed
 *   FAULTSHIM_JOURNAL  where they are written down; what is overwritten or unlinked is kept in the folder JOURNAL.kept,
 *                      which must be on the file system of the root
 *   FAULTSHIM_LIE      syncs do nothing and say that they did
 *   FAULTSHIM_FULL     while a file of this name exists, nothing below the root can grow (64-bit Linux)
 *   FAULTSHIM_READ_ONLY  while a file of this name exists, nothing below the root can be changed or synced, as after a file
 *                      system was mounted read-only for its errors; files that are open for writing fail, too
 *   FAULTSHIM_SYNC_US  how long a sync takes, in microseconds
 *
 * The journal has a line for each change, tab separated, written before the change but for those that make something:
 *
 *   C ino path                      a file was made
 *   M path                          a folder was made
 *   L ino path                      a second name was made
 *   W ino offset length size kept   bytes are written; the file's size before, and a copy of what they replace, or 0
 *   T ino size new kept             the size is changed from `size` to `new`; a copy of what is cut off, or 0
 *   R ino from to kept              a rename; a link to the file that it replaces, or 0
 *   U ino path kept                 a name is removed; a link to the file
 *   D path                          a folder is removed
 *   B id ino | F id path            a sync of a file, of a folder begins; E id: it has ended well
 *
 * Not followed: mmap (RocksDB writes with it only when told to), copy_file_range, stdio, duplicated descriptors. None of
 * them is used below the root. What is not followed counts as durable.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#define FDS 65536
#define PATH 4096

static char root[PATH];
static size_t root_len;
static char kept_dir[PATH];
static const char *full_flag;
static const char *read_only_flag;
static int journal = -1;
static int lies;
static long sync_us;
static _Atomic long ids = 1;
static _Atomic unsigned char followed[FDS];

__attribute__((constructor)) static void start(void) {
    const char *value = getenv("FAULTSHIM_ROOT");
    const char *to = getenv("FAULTSHIM_JOURNAL");
    if (!value || !to || strlen(value) >= PATH || strlen(to) >= PATH - 16) return;
    strcpy(root, value);
    root_len = strlen(root);
    snprintf(kept_dir, sizeof kept_dir, "%s.kept", to);
    syscall(SYS_mkdirat, AT_FDCWD, kept_dir, 0700);
    journal = syscall(SYS_openat, AT_FDCWD, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    full_flag = getenv("FAULTSHIM_FULL");
    read_only_flag = getenv("FAULTSHIM_READ_ONLY");
    lies = getenv("FAULTSHIM_LIE") != NULL;
    value = getenv("FAULTSHIM_SYNC_US");
    sync_us = value ? atol(value) : 0;
    if (journal < 0) {
        fprintf(stderr, "faultshim: cannot write %s\n", to);
        abort();
    }
}

/* One write, so that lines of several threads do not mix. */
static void say(const char *format, ...) {
    char line[3 * PATH];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (length <= 0 || length >= (int)sizeof line || syscall(SYS_write, journal, line, length) != length) abort();
}

static int is_below(const char *path) {
    return journal >= 0 && strncmp(path, root, root_len) == 0 && (path[root_len] == '/' || path[root_len] == 0);
}

/* The absolute path, if it is below the root. Errno is left alone. */
static int below(int dir, const char *path, char *out) {
    if (journal < 0 || !path) return 0;
    int saved = errno;
    out[0] = 0;
    if (path[0] == '/') {
        if (strlen(path) < PATH) strcpy(out, path);
    } else {
        char base[PATH], link[64];
        ssize_t length;
        if (dir == AT_FDCWD) {
            length = syscall(SYS_getcwd, base, sizeof base);
            length = length > 0 ? length - 1 : -1;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
            length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
        }
        if (length > 0 && length + strlen(path) + 2 < PATH) {
            base[length] = '/';
            memcpy(out, base, length + 1);
            strcpy(out + length + 1, path);
        }
    }
    size_t length = strlen(out);
    while (length > 1 && out[length - 1] == '/') out[--length] = 0;
    errno = saved;
    return is_below(out);
}

static int is_raised(const char *flag) {
    if (!flag) return 0;
    int saved = errno;
    int is = syscall(SYS_faccessat, AT_FDCWD, flag, F_OK) == 0;
    errno = saved;
    return is;
}

static int is_full(void) { return is_raised(full_flag); }

/* Whether nothing can be changed; errno says so. */
static int is_read_only(void) {
    if (!is_raised(read_only_flag)) return 0;
    errno = EROFS;
    return 1;
}

static int is_followed(int fd) { return fd >= 0 && fd < FDS && followed[fd]; }

static int look(int fd, struct stat *found) { return fstat(fd, found) == 0 && S_ISREG(found->st_mode); }

/* A copy of a part of a file; its number. */
static long keep_bytes(const char *path, int fd, off_t from, off_t length) {
    if (length <= 0) return 0;
    char name[PATH + 32], buffer[65536];
    long id = ids++;
    snprintf(name, sizeof name, "%s/%ld-%d", kept_dir, id, (int)getpid());
    int own = path != NULL;
    int in = fd;
    /* The descriptor itself may be write only. */
    char link[64];
    if (!own) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        path = link;
    }
    in = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    int out = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (in < 0 || out < 0) abort();
    while (length > 0) {
        size_t most = length < (off_t)sizeof buffer ? (size_t)length : sizeof buffer;
        ssize_t read = syscall(SYS_pread64, in, buffer, most, from);
        if (read <= 0) break;
        if (syscall(SYS_write, out, buffer, read) != read) abort();
        from += read;
        length -= read;
    }
    syscall(SYS_close, in);
    syscall(SYS_close, out);
    return id;
}

/* Another name for a file that is about to lose one; its number. */
static long keep_file(const char *path) {
    char name[PATH + 32];
    long id = ids++;
    snprintf(name, sizeof name, "%s/%ld-%d", kept_dir, id, (int)getpid());
    return syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, name, 0) == 0 ? id : 0;
}

#define NOTED(id) (id), (int)getpid()

/* Writes down a write; -1 if there is no room for it. */
static int will_write(int fd, off_t offset, size_t length) {
    struct stat now;
    if (is_read_only()) return -1;
    if (length == 0 || !look(fd, &now)) return 0;
    off_t end = offset + (off_t)length;
    if (end > now.st_size && is_full()) {
        errno = ENOSPC;
        return -1;
    }
    off_t overlap = offset >= now.st_size ? 0 : (end < now.st_size ? end : now.st_size) - offset;
    long kept = keep_bytes(NULL, fd, offset, overlap);
    say("W\t%lu\t%lld\t%zu\t%lld\t%ld-%d\n", now.st_ino, (long long)offset, length, (long long)now.st_size, NOTED(kept));
    return 0;
}

static int will_write_here(int fd, size_t length) {
    struct stat now;
    if (!look(fd, &now)) return 0;
    int flags = syscall(SYS_fcntl, fd, F_GETFL);
    return will_write(fd, flags & O_APPEND ? now.st_size : syscall(SYS_lseek, fd, 0, SEEK_CUR), length);
}

static int will_resize(const char *path, int fd, off_t size) {
    struct stat now;
    if (is_read_only()) return -1;
    if (path ? stat(path, &now) != 0 || !S_ISREG(now.st_mode) : !look(fd, &now)) return 0;
    if (size == now.st_size) return 0;
    if (size > now.st_size && is_full()) {
        errno = ENOSPC;
        return -1;
    }
    long kept = keep_bytes(path, fd, size, now.st_size - size);
    say("T\t%lu\t%lld\t%lld\t%ld-%d\n", now.st_ino, (long long)now.st_size, (long long)size, NOTED(kept));
    return 0;
}

static size_t total(const struct iovec *parts, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].iov_len;
    return sum;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    if (is_followed(fd) && will_write_here(fd, length) < 0) return -1;
    return syscall(SYS_write, fd, bytes, length);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (is_followed(fd) && will_write_here(fd, total(parts, count)) < 0) return -1;
    return syscall(SYS_writev, fd, parts, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    if (is_followed(fd) && will_write(fd, offset, length) < 0) return -1;
    return syscall(SYS_pwrite64, fd, bytes, length, offset);
}
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return pwrite64(fd, bytes, length, offset); }

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    if (is_followed(fd) && will_write(fd, offset, total(parts, count)) < 0) return -1;
    return syscall(SYS_pwritev, fd, parts, count, offset, offset >> 32);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return pwritev64(fd, parts, count, offset);
}

int ftruncate64(int fd, off64_t size) {
    if (is_followed(fd) && will_resize(NULL, fd, size) < 0) return -1;
    return syscall(SYS_ftruncate, fd, size);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int truncate64(const char *path, off64_t size) {
    char at[PATH];
    if (below(AT_FDCWD, path, at) && will_resize(at, -1, size) < 0) return -1;
    return syscall(SYS_truncate, path, size);
}
int truncate(const char *path, off_t size) { return truncate64(path, size); }

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
    if (is_followed(fd)) {
        struct stat now;
        if (is_read_only()) return -1;
        if (is_full() && !(mode & FALLOC_FL_PUNCH_HOLE)) {
            errno = ENOSPC;
            return -1;
        }
        if (look(fd, &now)) {
            /* A hole is like zeros that are written. */
            if ((mode & ~FALLOC_FL_KEEP_SIZE) && offset < now.st_size) {
                off64_t end = offset + length < now.st_size ? offset + length : now.st_size;
                if (will_write(fd, offset, end - offset) < 0) return -1;
            }
            if (!(mode & FALLOC_FL_KEEP_SIZE) && offset + length > now.st_size
                && will_resize(NULL, fd, offset + length) < 0)
                return -1;
        }
    }
    return syscall(SYS_fallocate, fd, mode, offset, length);
}
int fallocate(int fd, int mode, off_t offset, off_t length) { return fallocate64(fd, mode, offset, length); }
int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    return fallocate64(fd, 0, offset, length) == 0 ? 0 : errno;
}
int posix_fallocate(int fd, off_t offset, off_t length) { return posix_fallocate64(fd, offset, length); }

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    char at[PATH];
    if ((flags & O_PATH) || !below(dir, path, at)) return syscall(SYS_openat, dir, path, flags, mode);
    if (((flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC))) && is_read_only()) return -1;
    int saved = errno;
    int existed = syscall(SYS_faccessat, AT_FDCWD, at, F_OK) == 0;
    errno = saved;
    if (!existed && (flags & O_CREAT) && is_full()) {
        errno = ENOSPC;
        return -1;
    }
    if (existed && (flags & O_TRUNC) && will_resize(at, -1, 0) < 0) return -1;
    int fd = syscall(SYS_openat, dir, path, flags, mode);
    struct stat now;
    if (fd >= 0 && fd < FDS && look(fd, &now)) {
        followed[fd] = (flags & O_ACCMODE) != O_RDONLY;
        if (!existed) say("C\t%lu\t%s\n", now.st_ino, at);
    }
    return fd;
}

#define MODE                                  \
    mode_t mode = 0;                          \
    if (flags & (O_CREAT | __O_TMPFILE)) {    \
        va_list args;                         \
        va_start(args, flags);                \
        mode = va_arg(args, mode_t);          \
        va_end(args);                         \
    }

int open(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE return open_at(dir, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int close(int fd) {
    if (fd >= 0 && fd < FDS) followed[fd] = 0;
    return syscall(SYS_close, fd);
}

static int sync_fd(int fd, long call) {
    struct stat now;
    char link[64], path[PATH];
    if (journal < 0 || fstat(fd, &now) != 0) return syscall(call, fd);
    long id = 0;
    if (S_ISDIR(now.st_mode)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
        if (length <= 0) return syscall(call, fd);
        path[length] = 0;
        if (!is_below(path)) return syscall(call, fd);
        if (is_read_only()) return -1;
        id = ids++;
        if (!lies) say("F\t%ld\t%s\n", id, path);
    } else if (is_followed(fd)) {
        if (is_read_only()) return -1;
        id = ids++;
        if (!lies) say("B\t%ld\t%lu\n", id, now.st_ino);
    } else {
        return syscall(call, fd);
    }
    if (sync_us > 0) usleep(sync_us);
    if (!lies) say("E\t%ld\n", id);
    return 0;
}

int fsync(int fd) { return sync_fd(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_fd(fd, SYS_fdatasync); }
/* Starts writing back, and promises nothing. */
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags) {
    return is_followed(fd) ? 0 : (int)syscall(SYS_sync_file_range, fd, offset, length, flags);
}

/* A full disk says so to those who ask. (Rust's `rustix` asks the kernel itself, and is told the truth.) */
int statvfs64(const char *path, struct statvfs64 *found) {
    struct statfs64 now;
    char at[PATH];
    memset(found, 0, sizeof *found);
    if (statfs64(path, &now) != 0) return -1;
    found->f_bsize = now.f_bsize;
    found->f_frsize = now.f_frsize ? now.f_frsize : now.f_bsize;
    found->f_blocks = now.f_blocks;
    found->f_files = now.f_files;
    found->f_ffree = found->f_favail = now.f_ffree;
    found->f_namemax = now.f_namelen;
    if (!(below(AT_FDCWD, path, at) && is_full())) {
        found->f_bfree = now.f_bfree;
        found->f_bavail = now.f_bavail;
    }
    return 0;
}
int statvfs(const char *path, struct statvfs *found) { return statvfs64(path, (struct statvfs64 *)found); }

static int rename_at(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char from_at[PATH], to_at[PATH];
    struct stat moved;
    if (below(to_dir, to, to_at) && is_read_only()) return -1;
    if (below(from_dir, from, from_at) && below(to_dir, to, to_at) && lstat(from_at, &moved) == 0) {
        struct stat replaced;
        int saved = errno;
        long kept = lstat(to_at, &replaced) == 0 && S_ISREG(replaced.st_mode) ? keep_file(to_at) : 0;
        errno = saved;
        say("R\t%lu\t%s\t%s\t%ld-%d\n", moved.st_ino, from_at, to_at, NOTED(kept));
    }
    return syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}

int rename(const char *from, const char *to) { return rename_at(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return rename_at(from_dir, from, to_dir, to, 0);
}
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    return rename_at(from_dir, from, to_dir, to, flags);
}

static int unlink_at(int dir, const char *path, int flags) {
    char at[PATH];
    struct stat now;
    if (below(dir, path, at) && is_read_only()) return -1;
    if (below(dir, path, at) && lstat(at, &now) == 0) {
        if (flags & AT_REMOVEDIR)
            say("D\t%s\n", at);
        else if (S_ISREG(now.st_mode))
            say("U\t%lu\t%s\t%ld-%d\n", now.st_ino, at, NOTED(keep_file(at)));
    }
    return syscall(SYS_unlinkat, dir, path, flags);
}

int unlink(const char *path) { return unlink_at(AT_FDCWD, path, 0); }
int unlinkat(int dir, const char *path, int flags) { return unlink_at(dir, path, flags); }
int rmdir(const char *path) { return unlink_at(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    int done = unlink_at(AT_FDCWD, path, 0);
    return done == 0 || errno != EISDIR ? done : rmdir(path);
}

static int link_at(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    char at[PATH];
    struct stat now;
    if (below(to_dir, to, at) && is_read_only()) return -1;
    int done = syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
    if (done == 0 && below(to_dir, to, at) && lstat(at, &now) == 0) say("L\t%lu\t%s\n", now.st_ino, at);
    return done;
}

int link(const char *from, const char *to) { return link_at(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    return link_at(from_dir, from, to_dir, to, flags);
}

int mkdirat(int dir, const char *path, mode_t mode) {
    char at[PATH];
    int is = below(dir, path, at);
    if (is && is_read_only()) return -1;
    if (is && is_full()) {
        errno = ENOSPC;
        return -1;
    }
    int done = syscall(SYS_mkdirat, dir, path, mode);
    if (done == 0 && is) say("M\t%s\n", at);
    return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
