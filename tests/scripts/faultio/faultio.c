/* Makes storage misbehave for one process, without root: preload this in front of libc.
 *
 *   ATELIER_FAULTIO_PATH     only files below this folder are touched
 *   ATELIER_FAULTIO_CONTROL  a file that says what happens now, read at every call, so that a test
 *                            can break and heal the disk while the process runs. One rule a line:
 *                              sync EIO          fsync and fdatasync fail
 *                              sync delay 500    ... or wait 500 ms first
 *                              write ENOSPC      write, pwrite and their vectors fail
 *                              write delay 20
 *                            An empty or missing file means no fault.
 *
 * Reaches every caller that goes through libc: SQLite and Rust's std do. A program that makes raw
 * system calls (rustix's linux_raw backend) is not reached.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int below_faulty_folder(int fd) {
    const char *folder = getenv("ATELIER_FAULTIO_PATH");
    if (folder == NULL || *folder == '\0') return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = '\0';
    size_t prefix = strlen(folder);
    while (prefix > 1 && folder[prefix - 1] == '/') prefix--;
    return strncmp(path, folder, prefix) == 0 && (path[prefix] == '/' || path[prefix] == '\0');
}

/* Applies the rule for `operation`; returns 0 to go on, or the errno to fail with. */
static int fault(int fd, const char *operation) {
    const char *control = getenv("ATELIER_FAULTIO_CONTROL");
    if (control == NULL || !below_faulty_folder(fd)) return 0;
    int rules_fd = (int)syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC);
    if (rules_fd < 0) return 0;
    char rules[1024];
    ssize_t length = syscall(SYS_read, rules_fd, rules, sizeof rules - 1);
    syscall(SYS_close, rules_fd);
    if (length <= 0) return 0;
    rules[length] = '\0';

    char *rest = NULL;
    for (char *line = strtok_r(rules, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char name[16], what[16];
        long milliseconds = 0;
        int fields = sscanf(line, "%15s %15s %ld", name, what, &milliseconds);
        if (fields < 2 || strcmp(name, operation) != 0) continue;
        if (strcmp(what, "EIO") == 0) return EIO;
        if (strcmp(what, "ENOSPC") == 0) return ENOSPC;
        if (strcmp(what, "delay") == 0 && fields == 3) {
            struct timespec pause = {milliseconds / 1000, (milliseconds % 1000) * 1000000L};
            while (nanosleep(&pause, &pause) == -1 && errno == EINTR) {}
        }
    }
    return 0;
}

#define PASS_ON(result, operation, name, parameters, arguments)                 \
    result name parameters {                                                    \
        static result(*next) parameters;                                        \
        if (next == NULL) next = (result(*) parameters)dlsym(RTLD_NEXT, #name); \
        int error = fault(fd, operation);                                       \
        if (error != 0) {                                                       \
            errno = error;                                                      \
            return -1;                                                          \
        }                                                                       \
        return next arguments;                                                  \
    }

PASS_ON(int, "sync", fsync, (int fd), (fd))
PASS_ON(int, "sync", fdatasync, (int fd), (fd))
PASS_ON(ssize_t, "write", write, (int fd, const void *data, size_t size), (fd, data, size))
PASS_ON(ssize_t, "write", pwrite, (int fd, const void *data, size_t size, off_t at),
        (fd, data, size, at))
PASS_ON(ssize_t, "write", pwrite64, (int fd, const void *data, size_t size, off64_t at),
        (fd, data, size, at))
PASS_ON(ssize_t, "write", writev, (int fd, const struct iovec *parts, int count),
        (fd, parts, count))
