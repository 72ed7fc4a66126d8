/* Makes system calls on the files of one folder fail, or kills the process at one of them.
 *
 * Preloaded into a process that calls fault_arm(). Only calls that change files count: they are
 * numbered from 1. Modes: 0 count only; 1 die before the call; 2 die in the middle of it (half of
 * a write is done, other calls are done whole); 3 fail once; 4 fail from then on.
 *
 * fault_record() writes such calls to a log instead, in the order in which they were done, with
 * what they wrote; fault_mark() adds a line of the caller's own. An entry of the log is a line
 *
 *     kind offset length path
 *
 * and then `length` bytes. Kinds: w write, t truncate to `offset`, s sync, n new file, m new
 * folder, r rename to what the bytes say, l the same as a second name, u unlink, ! mark number
 * `offset`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
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
static const int RECORD = 5;
static int log_file = -1;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;

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
    if (!folder_length || !path || strncmp(path, folder, folder_length)) return 0;
    return path[folder_length] == 0 || path[folder_length] == '/';
}

/* Whether a descriptor is of a file in the folder, and of which. */
static int of_folder(int descriptor, char path[4096]) {
    char name[64];
    if (!folder_length) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(name, path, 4095);
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

static void note(char kind, off_t offset, const char *path, const void *data, size_t size) {
    /* A log with a gap would prove nothing. */
    if (dprintf(log_file, "%c %lld %zu %s\n", kind, (long long)offset, size, path) < 0) abort();
    if (write(log_file, data, size) != (ssize_t)size) abort();
}

void fault_record(const char *path, const char *log) {
    log_file = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (log_file < 0) abort();
    fault_arm(path, RECORD, 0, 0);
}

void fault_mark(int number) {
    pthread_mutex_lock(&log_lock);
    note('!', number, "", "", 0);
    pthread_mutex_unlock(&log_lock);
}

/* Before a call that is to be recorded: no other one comes between it and its entry in the log. */
static int begin(int concerned) {
    if (!concerned || mode != RECORD) return 0;
    pthread_mutex_lock(&log_lock);
    return 1;
}

static void end(
    int begun, int done, char kind, off_t offset, const char *path, const void *data, size_t size) {
    if (!begun) return;
    if (done) note(kind, offset, path, data, size);
    pthread_mutex_unlock(&log_lock);
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    char path[4096];
    int concerned = of_folder(fd, path), what = verdict(concerned);
    if (what == 2) return -1;
    if (what == 1) { real(fd, data, size / 2); die(); }
    int begun = begin(concerned);
    ssize_t written = real(fd, data, size);
    /* Where it went is known only now: a file may be opened to append. */
    off_t offset = begun ? lseek(fd, 0, SEEK_CUR) - written : 0;
    end(begun, written > 0, 'w', offset, path, data, written);
    return written;
}

#define PWRITE(function) \
    ssize_t function(int fd, const void *data, size_t size, off_t offset) { \
        REAL(ssize_t, #function, int, const void *, size_t, off_t); \
        char path[4096]; \
        int concerned = of_folder(fd, path), what = verdict(concerned); \
        if (what == 2) return -1; \
        if (what == 1) { real(fd, data, size / 2, offset); die(); } \
        int begun = begin(concerned); \
        ssize_t written = real(fd, data, size, offset); \
        end(begun, written > 0, 'w', offset, path, data, written); \
        return written; \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define ON_DESCRIPTOR(function) \
    int function(int fd) { \
        REAL(int, #function, int); \
        char path[4096]; \
        int concerned = of_folder(fd, path), what = verdict(concerned); \
        if (what == 2) return -1; \
        int begun = begin(concerned); \
        int result = real(fd); \
        end(begun, result == 0, 's', 0, path, "", 0); \
        if (what == 1) die(); \
        return result; \
    }
ON_DESCRIPTOR(fsync)
ON_DESCRIPTOR(fdatasync)

#define TRUNCATE(function) \
    int function(int fd, off_t length) { \
        REAL(int, #function, int, off_t); \
        char path[4096]; \
        int concerned = of_folder(fd, path), what = verdict(concerned); \
        if (what == 2) return -1; \
        int begun = begin(concerned); \
        int result = real(fd, length); \
        end(begun, result == 0, 't', length, path, "", 0); \
        if (what == 1) die(); \
        return result; \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    int concerned = in_folder(to), what = verdict(concerned);
    if (what == 2) return -1;
    int begun = begin(concerned);
    int result = real(from, to);
    end(begun, result == 0, 'r', 0, from, to, strlen(to));
    if (what == 1) die();
    return result;
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    int concerned = in_folder(to), what = verdict(concerned);
    if (what == 2) return -1;
    int begun = begin(concerned);
    int result = real(from, to);
    end(begun, result == 0, 'l', 0, from, to, strlen(to));
    if (what == 1) die();
    return result;
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    int concerned = in_folder(path), what = verdict(concerned);
    if (what == 2) return -1;
    int begun = begin(concerned);
    int result = real(path);
    end(begun, result == 0, 'u', 0, path, "", 0);
    if (what == 1) die();
    return result;
}

int mkdir(const char *path, mode_t permissions) {
    REAL(int, "mkdir", const char *, mode_t);
    int concerned = in_folder(path), what = verdict(concerned);
    if (what == 2) return -1;
    int begun = begin(concerned);
    int result = real(path, permissions);
    end(begun, result == 0, 'm', 0, path, "", 0);
    if (what == 1) die();
    return result;
}

/* An open changes something when it makes a file; when it empties one, that is recorded too. */
#define OPEN(function) \
    int function(const char *path, int flags, ...) { \
        REAL(int, #function, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t permissions = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        int ours = (flags & (O_CREAT | O_TRUNC)) && in_folder(path); \
        int makes = ours && access(path, F_OK) != 0; \
        int what = verdict(makes && (flags & O_CREAT)); \
        if (what == 2) return -1; \
        int begun = begin(makes || (ours && (flags & O_TRUNC))); \
        int result = real(path, flags, permissions); \
        end(begun, result >= 0, makes ? 'n' : 't', 0, path, "", 0); \
        if (what == 1) die(); \
        return result; \
    }
OPEN(open)
OPEN(open64)
