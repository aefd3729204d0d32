import { constants } from 'node:os'
import { AppError, type ErrorCode } from '@tollward/errors'
import koffi, { type LibraryHandle } from 'koffi'

/** An address in this process's memory, as koffi gives it. */
export type Pointer = bigint

type Argument = number | bigint | string | Uint8Array | Uint32Array | null
type Call<Result> = ((...argument: Argument[]) => Result) & {
  async: (...argument: [...Argument[], (error: Error | null, result: Result) => void]) => void
}

const LIBBPF = 'libbpf.so.1'
const LIBC = 'libc.so.6'

/** Only these are bound: each line is the prototype of <bpf/bpf.h>, <bpf/libbpf.h> or <bpf/btf.h> with opaque pointers. */
const LIBBPF_INTEGERS = {
  bpf_object__load: 'int bpf_object__load(void *object)',
  bpf_map__set_max_entries: 'int bpf_map__set_max_entries(void *map, uint32_t entries)',
  bpf_map__set_pin_path: 'int bpf_map__set_pin_path(void *map, const char *path)',
  bpf_map__fd: 'int bpf_map__fd(void *map)',
  bpf_program__set_autoload: 'int bpf_program__set_autoload(void *program, int autoload)',
  bpf_program__set_expected_attach_type: 'int bpf_program__set_expected_attach_type(void *program, int type)',
  bpf_program__fd: 'int bpf_program__fd(void *program)',
  bpf_map_lookup_elem: 'int bpf_map_lookup_elem(int fd, const void *key, void *value)',
  bpf_map_update_elem: 'int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags)',
  bpf_map_delete_elem: 'int bpf_map_delete_elem(int fd, const void *key)',
  bpf_map_get_next_key: 'int bpf_map_get_next_key(int fd, const void *key, void *next)',
  bpf_map_lookup_and_delete_batch:
    'int bpf_map_lookup_and_delete_batch(int fd, void *in, void *out, void *keys, void *values, uint32_t *count, const void *opts)',
  bpf_map_update_batch:
    'int bpf_map_update_batch(int fd, const void *keys, const void *values, uint32_t *count, const void *opts)',
  bpf_map_lookup_batch:
    'int bpf_map_lookup_batch(int fd, void *in, void *out, void *keys, void *values, uint32_t *count, const void *opts)',
  bpf_map_delete_batch: 'int bpf_map_delete_batch(int fd, const void *keys, uint32_t *count, const void *opts)',
  bpf_map_get_fd_by_id: 'int bpf_map_get_fd_by_id(uint32_t id)',
  bpf_prog_get_fd_by_id: 'int bpf_prog_get_fd_by_id(uint32_t id)',
  bpf_link_get_fd_by_id: 'int bpf_link_get_fd_by_id(uint32_t id)',
  bpf_link_get_next_id: 'int bpf_link_get_next_id(uint32_t id, uint32_t *next)',
  bpf_obj_pin: 'int bpf_obj_pin(int fd, const char *path)',
  bpf_obj_get: 'int bpf_obj_get(const char *path)',
  bpf_obj_get_info_by_fd: 'int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *length)',
  bpf_link_create: 'int bpf_link_create(int program, int target, int type, const void *opts)',
  bpf_iter_create: 'int bpf_iter_create(int link)',
  bpf_link_update: 'int bpf_link_update(int link, int program, const void *opts)',
  bpf_link_detach: 'int bpf_link_detach(int link)',
  bpf_raw_tracepoint_open: 'int bpf_raw_tracepoint_open(const char *name, int program)',
  bpf_xdp_query: 'int bpf_xdp_query(int ifindex, int flags, void *opts)',
  bpf_tc_hook_create: 'int bpf_tc_hook_create(void *hook)',
  bpf_tc_hook_destroy: 'int bpf_tc_hook_destroy(void *hook)',
  bpf_tc_attach: 'int bpf_tc_attach(const void *hook, void *opts)',
  bpf_tc_detach: 'int bpf_tc_detach(const void *hook, const void *opts)',
  bpf_tc_query: 'int bpf_tc_query(const void *hook, void *opts)',
  bpf_prog_test_run_opts: 'int bpf_prog_test_run_opts(int program, void *opts)',
  bpf_enable_stats: 'int bpf_enable_stats(int type)',
  libbpf_num_possible_cpus: 'int libbpf_num_possible_cpus()',
  btf__find_by_name: 'int btf__find_by_name(void *btf, const char *name)',
  btf__resolve_size: 'int64_t btf__resolve_size(void *btf, uint32_t id)',
} as const

const LIBBPF_POINTERS = {
  bpf_object__open_file: 'void *bpf_object__open_file(const char *path, const void *opts)',
  bpf_object__close: 'void *bpf_object__close(void *object)',
  bpf_object__find_map_by_name: 'void *bpf_object__find_map_by_name(void *object, const char *name)',
  bpf_object__find_program_by_name: 'void *bpf_object__find_program_by_name(void *object, const char *name)',
  bpf_object__next_program: 'void *bpf_object__next_program(void *object, void *program)',
  bpf_object__next_map: 'void *bpf_object__next_map(void *object, void *map)',
  libbpf_set_print: 'void *libbpf_set_print(void *print)',
  btf__parse: 'void *btf__parse(const char *path, void *ext)',
  btf__load_from_kernel_by_id: 'void *btf__load_from_kernel_by_id(uint32_t id)',
  btf__free: 'void *btf__free(void *btf)',
  btf__type_by_id: 'void *btf__type_by_id(void *btf, uint32_t id)',
} as const

const LIBBPF_TEXTS = {
  libbpf_version_string: 'const char *libbpf_version_string()',
  btf__name_by_offset: 'const char *btf__name_by_offset(void *btf, uint32_t offset)',
  bpf_program__name: 'const char *bpf_program__name(void *program)',
  bpf_program__section_name: 'const char *bpf_program__section_name(void *program)',
  bpf_map__name: 'const char *bpf_map__name(void *map)',
} as const

const LIBC_INTEGERS = {
  vsnprintf: 'int vsnprintf(void *to, size_t size, const void *format, void *arguments)',
  clock_gettime: 'int clock_gettime(int clock, void *time)',
  mount: 'int mount(const char *source, const char *target, const char *type, uint64_t flags, const void *data)',
  open_by_handle_at: 'int open_by_handle_at(int mount, const void *handle, int flags)',
  umount2: 'int umount2(const char *target, int flags)',
  munmap: 'int munmap(void *address, size_t length)',
  sysconf: 'int sysconf(int name)',
  if_nametoindex: 'int if_nametoindex(const char *name)',
  syscall: 'int64_t syscall(int64_t number, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e)',
  close: 'int close(int fd)',
  ioctl: 'int ioctl(int fd, uint64_t request, int64_t argument)',
} as const

const LIBC_POINTERS = {
  mmap: 'void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)',
} as const

type Calls<Table, Result> = { readonly [Name in keyof Table]: Call<Result> }
type Libbpf = Calls<typeof LIBBPF_INTEGERS, number> &
  Calls<typeof LIBBPF_POINTERS, Pointer | null> &
  Calls<typeof LIBBPF_TEXTS, string>
type Libc = Calls<typeof LIBC_INTEGERS, number> & Calls<typeof LIBC_POINTERS, Pointer>

/** Levels 0 and 1 are warnings and information; debug is left out. */
const LOG_LEVEL_MAX = 1
/** The verifier's log of one refused program; the rest is cut. */
const LOG_BYTES_MAX = 64 * 1024
const LOG_LINE_BYTES_MAX = 16 * 1024

let loadedLibbpf: Libbpf | undefined
let loadedLibc: Libc | undefined
let log = ''

/** libc.so.6; loaded at the first call. */
export function libc(): Libc {
  loadedLibc ??= bind<Libc>(LIBC, { ...LIBC_INTEGERS, ...LIBC_POINTERS })
  return loadedLibc
}

/** libbpf.so.1; loaded at the first call, so that importing this package asks nothing of the machine. */
export function libbpf(): Libbpf {
  if (loadedLibbpf) return loadedLibbpf
  loadedLibbpf = bind<Libbpf>(LIBBPF, { ...LIBBPF_INTEGERS, ...LIBBPF_POINTERS, ...LIBBPF_TEXTS })
  captureLog(loadedLibbpf)
  return loadedLibbpf
}

function bind<Library>(file: string, prototypes: Record<string, string>): Library {
  let library: LibraryHandle
  try {
    library = koffi.load(file)
  } catch (cause) {
    throw new AppError('unavailable', `${file} could not be loaded; install libbpf 1.1 or newer (Debian: libbpf1).`, {
      cause,
    })
  }
  return Object.fromEntries(
    Object.entries(prototypes).map(([name, prototype]) => [name, library.func(prototype)]),
  ) as Library
}

/** libbpf prints through a C callback with a va_list; vsnprintf of the same libc turns it into text. */
function captureLog(library: Libbpf): void {
  const line = Buffer.alloc(LOG_LINE_BYTES_MAX)
  const print = (level: number, format: Pointer, va: Pointer): number => {
    if (level > LOG_LEVEL_MAX) return 0
    const length = libc().vsnprintf(line, line.length, format, va)
    if (log.length < LOG_BYTES_MAX) log += line.toString('utf8', 0, Math.min(length, line.length - 1))
    return 0
  }
  const type = koffi.proto('TollwardPrint', 'int', ['int', 'void *', 'void *'])
  library.libbpf_set_print(koffi.register(print, koffi.pointer(type)))
}

/**
 * A call to libbpf or the kernel that failed: which, with what errno, and what libbpf and the verifier had to say.
 */
export class BpfError extends AppError {
  readonly operation: string
  readonly number: number
  /** Name of the errno, such as `EBUSY`. */
  readonly errno: string
  /** What libbpf printed during the call; holds the verifier's log if a program was refused. */
  readonly log: string

  constructor(operation: string, number: number, printed: string) {
    const errno = nameOfErrno(number)
    const lastLines = printed.trim().split('\n').slice(-3).join(' | ')
    super(CODES[errno] ?? 'internal', `${operation}: ${errno}${lastLines && `: ${lastLines}`}${hint(errno)}`)
    this.operation = operation
    this.number = number
    this.errno = errno
    this.log = printed
  }
}

const CODES: Record<string, ErrorCode> = {
  ENOENT: 'not_found',
  ENODEV: 'not_found',
  EEXIST: 'already_exists',
  EPERM: 'permission_denied',
  EACCES: 'permission_denied',
  EBUSY: 'failed_precondition',
  EINVAL: 'invalid_argument',
  E2BIG: 'resource_exhausted',
  ENOSPC: 'resource_exhausted',
  ENOMEM: 'resource_exhausted',
}

function hint(errno: string): string {
  return errno === 'EPERM' ? ' (needs root, or the capabilities BPF, NET_ADMIN and PERFMON)' : ''
}

function nameOfErrno(number: number): string {
  const found = Object.entries(constants.errno).find(([, value]) => value === number)
  return found?.[0] ?? `errno ${number}`
}

function takeLog(): string {
  const taken = log
  log = ''
  return taken
}

/** Result of a call that answers with -errno; throws BpfError if it is one. */
export function check(operation: string, result: number): number {
  const printed = takeLog()
  if (result < 0) throw new BpfError(operation, -result, printed)
  return result
}

/** Result of a call that answers with NULL and sets errno; throws BpfError if it did. */
export function checkPointer(operation: string, result: Pointer | null): Pointer {
  const errno = koffi.errno()
  const printed = takeLog()
  if (result === null || result === 0n) throw new BpfError(operation, errno, printed)
  return result
}

/** Result of a libc call that answers -1 and sets errno; throws BpfError if it did. */
export function checkErrno(operation: string, result: number): number {
  if (result === -1) throw new BpfError(operation, koffi.errno(), '')
  return result
}

/** Whether the failure is one of these errnos, by number: EOPNOTSUPP is ENOTSUP under another name. */
export function isErrno(error: unknown, ...names: (keyof typeof constants.errno)[]): error is BpfError {
  return error instanceof BpfError && names.some((name) => constants.errno[name] === error.number)
}

/** Address of a buffer, for structures that hold pointers. The caller keeps the buffer alive. */
export function addressOf(buffer: Uint8Array): bigint {
  return koffi.address(buffer)
}

/** Memory that C owns, without a copy. Whoever unmaps it must drop every view first. */
export function viewOf(address: Pointer, length: number): Uint8Array {
  return new Uint8Array(koffi.view(address, length))
}
