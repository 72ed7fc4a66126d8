/* Makes system calls on the files of one folder fail, or kills the process at one of them.
 *
 * Preloaded into a process that calls fault_arm(). Only calls that change files count: they are
 * numbered from 1. Modes: 0 count only; 1 die before the call; 2 die in the middle of it (half of
 * a write is done, other calls are done whole); 3 fail once; 4 fail from then on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[4096];
static size_t folder_length;
static volatile int mode, at, error_number, seen;

void fault_arm(const char *path, int new_mode, int number, int error) {
    folder_length = strlen(path);
    memcpy(folder, path, folder_length + 1);
    mode = new_mode;
    at = number;
    error_number = error;
    __atomic_store_n(&seen, 0, __ATOMIC_SEQ_CST);
}

int fault_disarm(void) {
    folder_length = 0;
    return __atomic_load_n(&seen, __ATOMIC_SEQ_CST);
}

static int in_folder(const char *path) {
    return folder_length && path && strncmp(path, folder, folder_length) == 0;
}

static int of_folder(int descriptor) {
    char name[64], path[4096];
    if (!folder_length) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return in_folder(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* What to do with a call: 0 let it pass, 1 die after half of it, 2 fail. */
static int verdict(int concerned) {
    if (!concerned) return 0;
    int number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (mode == 0 || number < at || (mode != 4 && number > at)) return 0;
    if (mode == 1) die();
    if (mode == 2) return 1;
    errno = error_number;
    return 2;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int what = verdict(of_folder(fd));
    if (what == 2) return -1;
    if (what == 1) { real(fd, data, size / 2); die(); }
    return real(fd, data, size);
}

#define PWRITE(function) \
    ssize_t function(int fd, const void *data, size_t size, off_t offset) { \
        REAL(ssize_t, #function, int, const void *, size_t, off_t); \
        int what = verdict(of_folder(fd)); \
        if (what == 2) return -1; \
        if (what == 1) { real(fd, data, size / 2, offset); die(); } \
        return real(fd, data, size, offset); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define ON_DESCRIPTOR(function) \
    int function(int fd) { \
        REAL(int, #function, int); \
        int what = verdict(of_folder(fd)); \
        if (what == 2) return -1; \
        int result = real(fd); \
        if (what == 1) die(); \
        return result; \
    }
ON_DESCRIPTOR(fsync)
ON_DESCRIPTOR(fdatasync)

#define TRUNCATE(function) \
    int function(int fd, off_t length) { \
        REAL(int, #function, int, off_t); \
        int what = verdict(of_folder(fd)); \
        if (what == 2) return -1; \
        int result = real(fd, length); \
        if (what == 1) die(); \
        return result; \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    int what = verdict(in_folder(to));
    if (what == 2) return -1;
    int result = real(from, to);
    if (what == 1) die();
    return result;
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    int what = verdict(in_folder(path));
    if (what == 2) return -1;
    int result = real(path);
    if (what == 1) die();
    return result;
}

int mkdir(const char *path, mode_t permissions) {
    REAL(int, "mkdir", const char *, mode_t);
    int what = verdict(in_folder(path));
    if (what == 2) return -1;
    int result = real(path, permissions);
    if (what == 1) die();
    return result;
}

/* Only an open that makes a file changes anything. */
#define OPEN(function) \
    int function(const char *path, int flags, ...) { \
        REAL(int, #function, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t permissions = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        int what = verdict((flags & O_CREAT) && in_folder(path) && access(path, F_OK) != 0); \
        if (what == 2) return -1; \
        int result = real(path, flags, permissions); \
        if (what == 1) die(); \
        return result; \
    }
OPEN(open)
OPEN(open64)
