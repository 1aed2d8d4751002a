/* Preloaded: kills the process with SIGKILL right before the n-th call that changes a file whose name holds "mark". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long left = -1; /* calls to go; negative: not armed */
static long seen;

void arm(long n) { left = n; seen = 0; }
long count(void) { return seen; }

static void step(const char *path)
{
    if (!strstr(path, "mark"))
        return;
    seen++;
    if (left > 0 && --left == 0)
        kill(getpid(), SIGKILL);
}

static void step_fd(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n > 0) {
        path[n] = 0;
        step(path);
    }
}

#define NEXT(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

ssize_t pwrite64(int fd, const void *b, size_t n, off_t at)
{
    step_fd(fd);
    return NEXT(ssize_t, "pwrite64", int, const void *, size_t, off_t)(fd, b, n, at);
}
ssize_t pwrite(int fd, const void *b, size_t n, off_t at)
{
    step_fd(fd);
    return NEXT(ssize_t, "pwrite", int, const void *, size_t, off_t)(fd, b, n, at);
}
ssize_t write(int fd, const void *b, size_t n)
{
    step_fd(fd);
    return NEXT(ssize_t, "write", int, const void *, size_t)(fd, b, n);
}
int ftruncate64(int fd, off_t n)
{
    step_fd(fd);
    return NEXT(int, "ftruncate64", int, off_t)(fd, n);
}
int ftruncate(int fd, off_t n)
{
    step_fd(fd);
    return NEXT(int, "ftruncate", int, off_t)(fd, n);
}
int fsync(int fd)
{
    step_fd(fd);
    return NEXT(int, "fsync", int)(fd);
}
int fdatasync(int fd)
{
    step_fd(fd);
    return NEXT(int, "fdatasync", int)(fd);
}
int unlink(const char *path)
{
    step(path);
    return NEXT(int, "unlink", const char *)(path);
}
