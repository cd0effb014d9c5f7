// What a hostile process does to a node, in the place of a compiler.
//
// `attempts` tries each thing and says of each whether the machine let it. Built as a library
// it is an NVRTC as well: the worker loads it, and it tries when it is to compile.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <sys/un.h>
#include <unistd.h>

extern char **environ;

static char *said;
static size_t room;

// One line: the attempt, and "refused" or "DONE".
static void tell(const char *what, int done) {
  int n = snprintf(said, room, "%s %s\n", what, done ? "DONE" : "refused");
  said += n;
  room -= n;
}
#define TRY(what, call) tell(what, (call) >= 0)

static int connected(int domain, int kind, const void *to, socklen_t size) {
  int s = socket(domain, kind, 0);
  return s < 0 ? -1 : connect(s, to, size);
}

static int inet(unsigned address, int port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address)};
  int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (s < 0) return -1;
  return connect(s, (void *)&to, sizeof to) == 0 || errno == EINPROGRESS ? 0 : -1;
}

static int local(const char *path) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  strncpy(to.sun_path, path, sizeof to.sun_path - 1);
  return connected(AF_UNIX, SOCK_STREAM, &to, sizeof to);
}

static int opened(const char *format, const char *of, int flags) {
  char path[512];
  snprintf(path, sizeof path, format, of);
  return open(path, flags, 0600);
}

static long word(const char *pid) {
  static char here[8];
  struct iovec mine = {here, sizeof here}, theirs = {(void *)0x400000, sizeof here};
  return syscall(SYS_process_vm_readv, atoi(pid), &mine, 1, &theirs, 1, 0) >= 0 || errno == EFAULT ? 0 : -1;
}

static int privileged(void) {
  struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2] = {{0}};
  syscall(SYS_capget, &head, data);
  return data[0].effective || data[0].permitted || data[1].effective ? 0 : -1;
}

static int raised(int what) {
  struct rlimit now;
  getrlimit(what, &now);
  now.rlim_cur = now.rlim_max = RLIM_INFINITY;
  return setrlimit(what, &now);
}

static int bytes_beyond(const char *path, off_t size) {
  int file = open(path, O_CREAT | O_RDWR, 0600);
  if (file < 0) return 0;
  signal(SIGXFSZ, SIG_IGN);
  int done = ftruncate(file, size);
  close(file);
  unlink(path);
  return done;
}

// What it is answered does not matter.
static int readable_by_all(const char *path) {
  struct stat found;
  (void)!chmod(path, 0644);
  return stat(path, &found) == 0 && found.st_mode & 044 ? 0 : -1;
}

// A child that leaves its group, if a child can be made at all.
static int left(int (*way)(void)) {
  int told[2];
  if (pipe(told)) return 0;
  pid_t child = fork();
  if (child < 0) return -1;
  char done = 0;
  if (child == 0) {
    done = way() >= 0;
    if (write(told[1], &done, 1) != 1) _exit(1);
    _exit(0);
  }
  close(told[1]);
  if (read(told[0], &done, 1) != 1) done = 1;
  close(told[0]);
  waitpid(child, NULL, 0);
  return done ? 0 : -1;
}
static int session(void) { return setsid(); }
static int group(void) { return setpgid(0, 0); }
static int space(void) { return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0) == 0 ? (_exit(0), 0) : -1; }

// `alone`: a process that starts no other. The rest: the daemon's id, another process's, a
// port and a socket of the node, a secret file, its folder, and a folder of another worker.
void attempts(int alone, const char *given, char *out, size_t size) {
  char daemon[32], other[32], port[32], path[256], secret[256], folder[256], beside[256];
  said = out, room = size;
  if (sscanf(given, "%31s %31s %31s %255s %255s %255s %255s", daemon, other, port, path, secret, folder, beside) != 7) {
    tell("arguments", 1);
    return;
  }
  int pid = atoi(daemon);
  TRY("connect to the node", inet(0x7f000001, atoi(port)));
  TRY("connect to the metadata service", inet(0xa9fea9fe, 80));
  TRY("connect to a local socket", local(path));
  TRY("a datagram socket", socket(AF_INET, SOCK_DGRAM, 0));
  TRY("a netlink socket", socket(AF_NETLINK, SOCK_RAW, 0));
  int pair[2];
  TRY("a pair that can be led elsewhere", socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
  TRY("read the key", opened("%s", secret, O_RDONLY));
  TRY("list the node's folder", opened("%s", folder, O_RDONLY | O_DIRECTORY));
  TRY("read the configuration", opened("%s", "/etc/hostname", O_RDONLY));
  TRY("read the environment of the node", opened("/proc/%s/environ", daemon, O_RDONLY));
  TRY("read the memory of the node", opened("/proc/%s/mem", daemon, O_RDONLY));
  TRY("list the descriptors of the node", opened("/proc/%s/fd", daemon, O_RDONLY | O_DIRECTORY));
  TRY("write outside", opened("%s/written", folder, O_CREAT | O_WRONLY));
  TRY("write in /tmp", opened("%s", "/tmp/kiln-hostile-written", O_CREAT | O_WRONLY));
  TRY("list another worker's folder", opened("%s", beside, O_RDONLY | O_DIRECTORY));
  TRY("write in another worker's folder", opened("%s/written", beside, O_CREAT | O_WRONLY));
  TRY("change the mode of the key", readable_by_all(secret));
  TRY("truncate the key", truncate(secret, 0));
  TRY("change the times of the key", utimensat(AT_FDCWD, secret, NULL, 0));
  TRY("link the key", link(secret, "linked"));
  TRY("rename the key", rename(secret, "renamed"));
  TRY("watch the node's folder", syscall(SYS_inotify_init1, 0));
  TRY("trace the node", ptrace(PTRACE_SEIZE, pid, 0, 0));
  TRY("read the node by its id", word(daemon));
  TRY("signal the node", kill(pid, 0));
  TRY("signal a thread of the node", syscall(SYS_tgkill, pid, pid, 0));
  TRY("signal another process", kill(atoi(other), 0));
  TRY("signal everybody", kill(-1, 0));
  TRY("queue a signal to the node", syscall(SYS_rt_sigqueueinfo, pid, 0, NULL) == 0 || errno == EFAULT ? 0 : -1);
  struct rlimit none = {0, 0};
  (void)none;
  TRY("read the limits of the node", syscall(SYS_prlimit64, pid, RLIMIT_NOFILE, NULL, &none));
  TRY("slow the node down", setpriority(PRIO_PROCESS, pid, getpriority(PRIO_PROCESS, pid)));
  TRY("a namespace", unshare(CLONE_NEWUSER));
  TRY("mount", syscall(SYS_mount, "none", "/mnt", "tmpfs", 0, NULL));
  TRY("a ring", syscall(SYS_io_uring_setup, 1, NULL) >= 0 || errno == EFAULT ? 0 : -1);
  TRY("a program of the kernel", syscall(SYS_bpf, 0, NULL, 0) >= 0 || errno == EINVAL || errno == E2BIG ? 0 : -1);
  TRY("a key of the kernel", syscall(SYS_keyctl, 0, -3, 0));
  TRY("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC | 1));
  TRY("perf", syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0) >= 0 || errno == EFAULT ? 0 : -1);
  TRY("set the clock", syscall(SYS_clock_settime, 0, NULL) >= 0 || errno == EFAULT ? 0 : -1);
  TRY("shared memory that stays", shmget(IPC_PRIVATE, 4096, 0600));
  TRY("memory that is a file", memfd_create("m", 0));
  TRY("a call of tomorrow", syscall(1000) >= 0 || errno != ENOSYS ? 0 : -1);
#ifdef __x86_64__
  TRY("a socket by the other interface", syscall(0x40000000 | SYS_socket, AF_INET, SOCK_STREAM, 0));
#endif
  TRY("a capability", privileged());
  TRY("a core dump", raised(RLIMIT_CORE));
  TRY("more descriptors", raised(RLIMIT_NOFILE));
  TRY("a file without end", bytes_beyond("long", 16L << 30));
  TRY("a session of its own", left(session));
  TRY("a group of its own", left(group));
  TRY("a namespace by a child", left(space));
  if (alone) {
    TRY("a child", fork() == 0 ? (_exit(0), 0) : -1);
    TRY("a child by clone", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) == 0 ? (_exit(0), 0) : -1);
    char *none[] = {NULL};
    TRY("another program", execve("/nonexistent", none, none) == -1 && errno == ENOENT ? 0 : -1);
    TRY("its own folder's parent", opened("%s", "../../..", O_RDONLY | O_DIRECTORY));
  }
  for (int at = 3; at < 4096; at++) {
    char what[64];
    struct stat found;
    // Pipes are the daemon's; anything else came from elsewhere.
    if (fstat(at, &found) == 0 && !S_ISFIFO(found.st_mode) && !S_ISCHR(found.st_mode)) {
      snprintf(what, sizeof what, "a descriptor of mode %o", found.st_mode);
      tell(what, 1);
    }
  }
  for (char **each = environ; *each; each++)
    if (!strncmp(*each, "KILN_", 5) || !strncmp(*each, "AWS_", 4)) tell(*each, 1);
  tell("end", 0);
}

// NVRTC, as far as a worker calls it.
static char ptx[1 << 16], source[1 << 16];
#define VERSION "// Cuda compilation tools, release 13.5, V13.5.37\n"
int nvrtcVersion(int *major, int *minor) { return *major = 13, *minor = 5, 0; }
int nvrtcGetNumSupportedArchs(int *count) { return *count = 1, 0; }
int nvrtcGetSupportedArchs(int *all) { return all[0] = 90, 0; }
int nvrtcCreateProgram(void **made, const char *text, const char *name, int n, const char *const *a, const char *const *b) {
  (void)name, (void)n, (void)a, (void)b;
  strncpy(source, text, sizeof source - 1);
  return *made = source, 0;
}
int nvrtcDestroyProgram(void **made) { return *made = NULL, 0; }
int nvrtcCompileProgram(void *made, int n, const char *const *options) {
  (void)made, (void)n, (void)options;
  strcpy(ptx, VERSION);
  const char *given = strstr(source, "hostile: ");
  if (given) attempts(1, given + 9, ptx + strlen(ptx), sizeof ptx - 256);
  return 0;
}
int nvrtcGetPTXSize(void *made, size_t *size) { return (void)made, *size = strlen(ptx) + 1, 0; }
int nvrtcGetPTX(void *made, char *to) { return (void)made, strcpy(to, ptx), 0; }
int nvrtcGetCUBINSize(void *made, size_t *size) { return nvrtcGetPTXSize(made, size); }
int nvrtcGetCUBIN(void *made, char *to) { return nvrtcGetPTX(made, to); }
int nvrtcGetProgramLogSize(void *made, size_t *size) { return (void)made, *size = 1, 0; }
int nvrtcGetProgramLog(void *made, char *to) { return (void)made, *to = 0, 0; }
int nvrtcAddNameExpression(void *made, const char *name) { return (void)made, (void)name, 0; }
const char *nvrtcGetErrorString(int code) { return (void)code, "hostile"; }
