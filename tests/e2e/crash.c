/* LD_PRELOAD: counts every change a process makes below one folder, and fails at the one that was asked for.
 *
 * Counted are the calls that change what a later process finds there: write, pwrite, writev, ftruncate, rename, unlink,
 * rmdir, mkdir and their relatives, in the order in which they are made. Test code only: see nursery.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL, DISK_FULL, TERMINATE };

static char folder[PATH_MAX];
static long at;
static int how;
static long *calls; /* shared with the process that forked this one */

__attribute__((constructor)) static void share(void) {
    calls = mmap(0, sizeof *calls, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void crash_below(const char *path, long call, int kind) {
    strncpy(folder, path, sizeof folder - 1);
    at = call;
    how = kind;
    *calls = 0;
}

long crash_calls(void) { return *calls; }

static int below(const char *path) { return !strncmp(path, folder, strlen(folder)); }

static int open_below(int fd) {
    char link[64], path[PATH_MAX];
    if (!*folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return below(path);
}

static int named_below(int directory, const char *path) {
    char whole[PATH_MAX];
    if (!*folder) return 0;
    if (*path == '/') return below(path);
    if (directory != AT_FDCWD) return open_below(directory);
    if (!getcwd(whole, sizeof whole)) return 0;
    strncat(whole, "/", sizeof whole - strlen(whole) - 1);
    strncat(whole, path, sizeof whole - strlen(whole) - 1);
    return below(whole);
}

/* Whether this call is to fail; does not return from the one to die at. `fd` has had half of `bytes` by then. */
static int due(int fd, const void *bytes, size_t size) {
    long call = __sync_add_and_fetch(calls, 1);
    if (how == NOTHING || call < at) return 0;
    if (how == DISK_FULL) { /* and it stays full */
        if (fd < 0) return 0;
        errno = ENOSPC;
        return 1;
    }
    if (call > at) return 0;
    if (how == TERMINATE) {
        kill(getpid(), SIGTERM);
        return 0;
    }
    if (fd >= 0) syscall(SYS_write, fd, bytes, size / 2);
    kill(getpid(), SIGKILL);
    return 1;
}

ssize_t write(int fd, const void *bytes, size_t size) {
    if (open_below(fd) && due(fd, bytes, size)) return -1;
    return syscall(SYS_write, fd, bytes, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (open_below(fd) && due(fd, parts[0].iov_base, parts[0].iov_len)) return -1;
    return syscall(SYS_writev, fd, parts, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset) {
    if (open_below(fd) && due(fd, bytes, 0)) return -1;
    return syscall(SYS_pwrite64, fd, bytes, size, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) { return pwrite64(fd, bytes, size, offset); }

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    if (open_below(out) && due(out, "", 0)) return -1;
    return syscall(SYS_copy_file_range, in, from, out, to, size, flags);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t size) {
    if (open_below(out) && due(out, "", 0)) return -1;
    return syscall(SYS_sendfile, out, in, offset, size);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size) { return sendfile64(out, in, offset, size); }

int ftruncate64(int fd, off64_t length) {
    if (open_below(fd) && due(fd, "", 0)) return -1;
    return syscall(SYS_ftruncate, fd, length);
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int renameat(int from, const char *old, int to, const char *new) {
    if (named_below(to, new)) due(-1, 0, 0);
    return syscall(SYS_renameat2, from, old, to, new, 0);
}

int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }

int unlinkat(int directory, const char *path, int flags) {
    if (named_below(directory, path)) due(-1, 0, 0);
    return syscall(SYS_unlinkat, directory, path, flags);
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int directory, const char *path, mode_t mode) {
    if (named_below(directory, path)) due(-1, 0, 0);
    return syscall(SYS_mkdirat, directory, path, mode);
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
