// The CUDA runtime without a device: what PyTorch asks for is granted, what it launches is told and left undone, what it reads is zero.
//
// Memory of the device cannot be touched by the host, as on a real one. An event has not happened when it is first asked for, as on a
// busy device. A capture is checked call by call: what a device forbids meanwhile is refused, as is work that would not be in the graph.
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

extern "C" {
typedef void (*Listener)(const char* kind, const char* what);  // kind: "launch", "copy", "set", "wait" or "refused"
static Listener listener = nullptr;
void null_listen(Listener told) { listener = told; }
void null_tell(const char* kind, const char* what) { if (listener) listener(kind, what); }
}

namespace {
using Clock = std::map<void*, long>;  // how much of the work of each stream has been done before
struct Stream { long capture = 0; Clock before; };
struct Event { long capture = 0; Clock before; long recorded = 0; };
struct Block { size_t size; bool pinned; };

std::recursive_mutex turn;
using Turn = std::lock_guard<std::recursive_mutex>;
std::map<char*, Block> blocks;
std::map<const void*, std::string>& kernels() { static auto* names = new std::map<const void*, std::string>; return *names; }
std::set<Stream*> streams;
Stream usual;
Stream* origin = nullptr;  // the stream on which a capture began, while it lasts
long captures = 0;
long records = 0, awaited = 0;  // of events: how many there were, and how many the host has waited for
bool spoiled = false;
thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
thread_local cudaError_t last = cudaSuccess;

Stream* stream_of(cudaStream_t s) { return reinterpret_cast<size_t>(s) < 16 ? &usual : reinterpret_cast<Stream*>(s); }
template <class T> bool captured(const T* streamOrEvent) { return origin && streamOrEvent->capture == captures; }

cudaError_t refuse(cudaError_t why, const char* what) {
  spoiled = true;
  null_tell("refused", what);
  return last = why;
}

bool relaxed() { return mode == cudaStreamCaptureModeRelaxed; }  // this thread, about what has nothing to do with the capture

// What may not be called while a stream is captured, but by who is relaxed, and not at all about the capture itself (``inside``).
cudaError_t unsafe(const char* what, bool inside = false) {
  Turn mine(turn);
  return origin && (inside || !relaxed()) ? refuse(cudaErrorStreamCaptureUnsupported, what) : cudaSuccess;
}

cudaError_t wait(const char* what, bool inside) {
  null_tell("wait", what);
  awaited = records;
  return unsafe(what, inside);
}

cudaError_t work(cudaStream_t on, const char* kind, const char* what) {
  Turn mine(turn);
  auto* s = stream_of(on);
  if (origin && !captured(s) && !relaxed()) return refuse(cudaErrorStreamCaptureImplicit, what);
  if (captured(s)) s->before[s]++;
  null_tell(kind, what);
  return cudaSuccess;
}

cudaError_t launch(const void* function, cudaStream_t s) {
  if (!listener) return work(s, "launch", "");
  auto mangled = kernels()[function];
  char* name = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, nullptr);
  auto done = work(s, "launch", name ? name : mangled.c_str());
  free(name);
  return done;
}

Block* block_of(const void* p) {
  auto next = blocks.upper_bound(static_cast<char*>(const_cast<void*>(p)));
  if (next == blocks.begin()) return nullptr;
  auto& [start, block] = *--next;
  return p < start + block.size ? &block : nullptr;
}

cudaError_t take(void** p, size_t size, bool pinned) {
  Turn mine(turn);
  void* found = mmap(nullptr, size + !size, pinned ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return last = cudaErrorMemoryAllocation;
  blocks[static_cast<char*>(*p = found)] = {size + !size, pinned};
  return cudaSuccess;
}

cudaError_t give(void* p) {
  Turn mine(turn);
  auto found = blocks.find(static_cast<char*>(p));
  if (found == blocks.end()) return cudaSuccess;
  munmap(p, found->second.size);
  blocks.erase(found);
  return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t size, cudaStream_t s) {
  Turn mine(turn);
  auto *there = block_of(to), *here = block_of(from);
  if (captured(stream_of(s)) && !(there && here)) return refuse(cudaErrorStreamCaptureUnsupported, "copy of pageable memory");
  bool down = !there || there->pinned, up = !here || here->pinned;
  if (down) memset(to, 0, size);
  return work(s, "copy", down ? "to the host" : up ? "from the host" : "on the device");
}

struct Shape { dim3 grid, block; size_t shared; cudaStream_t stream; };
thread_local std::vector<Shape> shapes;
}  // namespace

extern "C" {
// ---- kernels
void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) { kernels()[host] = name; }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* s) { shapes.push_back({grid, block, shared, s}); return 0; }
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* s) {
  auto top = shapes.back();
  shapes.pop_back();
  *grid = top.grid, *block = top.block, *shared = top.shared, *static_cast<cudaStream_t*>(s) = top.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* f) { *kernel = (cudaKernel_t)f; return cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3, dim3, void**, size_t, cudaStream_t s) { return launch((const void*)f, s); }
cudaError_t cudaLaunchKernel(const void* f, dim3, dim3, void**, size_t, cudaStream_t s) { return launch(f, s); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how, const void* f, void**) { return launch(f, how->stream); }
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t f, void* data) { f(data); return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->ptxVersion = a->binaryVersion = 90, a->maxDynamicSharedSizeBytes = 227 << 10;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int, size_t, unsigned) { *n = 2; return cudaSuccess; }
cudaError_t cudaGetSymbolAddress(void** p, const void*) { static void* symbol; return symbol ? (*p = symbol, cudaSuccess) : (take(&symbol, 1 << 16, false), *p = symbol, cudaSuccess); }

// ---- the device, an H100 by its numbers
cudaError_t cudaGetDeviceCount(int* n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { *d = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int d) { return d == 0 ? cudaSuccess : last = cudaErrorInvalidDevice; }
cudaError_t cudaDriverGetVersion(int* v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "null device");
  p->major = 9, p->multiProcessorCount = 132, p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 48 << 10, p->sharedMemPerBlockOptin = 227 << 10, p->sharedMemPerMultiprocessor = 228 << 10;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->totalGlobalMem = 80ull << 30, p->l2CacheSize = 50 << 20, p->memoryBusWidth = 5120;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535, p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->unifiedAddressing = p->concurrentKernels = p->canMapHostMemory = 1, p->asyncEngineCount = 3, p->textureAlignment = 512;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr which, int) {
  static const std::map<cudaDeviceAttr, int> known{
      {cudaDevAttrComputeCapabilityMajor, 9}, {cudaDevAttrMultiProcessorCount, 132}, {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxThreadsPerBlock, 1024}, {cudaDevAttrMaxThreadsPerMultiProcessor, 2048}, {cudaDevAttrMaxRegistersPerBlock, 65536},
      {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10}, {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10}, {cudaDevAttrMaxBlockDimX, 1024},
      {cudaDevAttrMaxGridDimX, 2147483647}, {cudaDevAttrMaxGridDimY, 65535}, {cudaDevAttrMaxGridDimZ, 65535}};
  auto found = known.find(which);
  *v = found == known.end() ? 0 : found->second;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int) { strncpy(id, "0000:00:00.0", size); return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { if (least) *least = 0; if (greatest) *greatest = -5; return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { *can = 0; return cudaSuccess; }
cudaError_t cudaGetLastError() { auto found = last; last = cudaSuccess; return found; }
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorName(cudaError_t) { return "error of the null device"; }
const char* cudaGetErrorString(cudaError_t e) {
  switch (e) {
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
    case cudaErrorStreamCaptureImplicit: return "work outside of the graph while a stream is capturing";
    default: return "error of the null device";
  }
}
int null_granted() { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** p, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
  void* known = dlsym(RTLD_DEFAULT, name);
  *p = known ? known : reinterpret_cast<void*>(null_granted);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// ---- memory
cudaError_t cudaMalloc(void** p, size_t size) { auto no = unsafe("cudaMalloc"); return no ? no : take(p, size, false); }
cudaError_t cudaHostAlloc(void** p, size_t size, unsigned) { auto no = unsafe("cudaHostAlloc"); return no ? no : take(p, size, true); }
cudaError_t cudaFree(void* p) { return give(p); }
cudaError_t cudaFreeHost(void* p) { return give(p); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) { *free = 79ull << 30, *total = 80ull << 30; return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Turn mine(turn);
  memset(a, 0, sizeof *a);
  if (auto* found = block_of(p)) a->type = found->pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice, a->devicePointer = const_cast<void*>(p);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t s) { return copy(to, from, size, s); }
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) { auto no = wait("cudaMemcpy", true); return no ? no : copy(to, from, size, nullptr); }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t s) { return work(s, "set", "memory"); }
cudaError_t cudaMemset(void*, int, size_t) { return work(nullptr, "set", "memory"); }

// ---- streams and events
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) {
  Turn mine(turn);
  auto* made = new Stream;
  streams.insert(made);
  *s = reinterpret_cast<cudaStream_t>(made);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreateWithPriority(s, 0, 0); }
cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithPriority(s, 0, 0); }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* p) { *p = 0; return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return unsafe("cudaStreamQuery", captured(stream_of(s))); }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return wait("cudaStreamSynchronize", captured(stream_of(s))); }
cudaError_t cudaDeviceSynchronize() { return wait("cudaDeviceSynchronize", true); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { *e = reinterpret_cast<cudaEvent_t>(new Event); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete reinterpret_cast<Event*>(e); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t on) {
  Turn mine(turn);
  auto* e = reinterpret_cast<Event*>(event);
  auto* s = stream_of(on);
  e->capture = captured(s) ? captures : 0, e->before = s->before, e->recorded = ++records;
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) { return cudaEventRecord(e, s); }
cudaError_t cudaEventQuery(cudaEvent_t event) {
  auto* e = reinterpret_cast<Event*>(event);
  if (auto no = unsafe("cudaEventQuery", captured(e))) return no;
  return std::exchange(e->recorded, 0) <= awaited ? cudaSuccess : cudaErrorNotReady;  // not yet when it is first asked for
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return wait("cudaEventSynchronize", captured(reinterpret_cast<Event*>(e))); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { *ms = 1; return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t on, cudaEvent_t event, unsigned) {
  Turn mine(turn);
  auto* e = reinterpret_cast<Event*>(event);
  auto* s = stream_of(on);
  bool joins = captured(e);
  if (captured(s) && !joins) return refuse(cudaErrorStreamCaptureIsolation, "cudaStreamWaitEvent for an event from before the capture");
  if (!joins) return cudaSuccess;
  if (!captured(s)) s->capture = captures, s->before.clear();
  for (auto [other, count] : e->before) s->before[other] = std::max(s->before[other], count);
  return cudaSuccess;
}

// ---- graphs
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) { std::swap(mode, *other); return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  Turn mine(turn);
  origin = stream_of(s);
  origin->capture = ++captures, origin->before.clear(), spoiled = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  Turn mine(turn);
  bool joined = true;
  for (auto* s : streams) joined &= !captured(s) || s->before[s] <= origin->before[s];
  origin = nullptr;
  *graph = reinterpret_cast<cudaGraph_t>(new char);
  if (spoiled) return last = cudaErrorStreamCaptureInvalidated;
  return joined ? cudaSuccess : refuse(cudaErrorStreamCaptureUnjoined, "end of the capture");
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* status) {
  Turn mine(turn);
  *status = !captured(stream_of(s)) ? cudaStreamCaptureStatusNone : spoiled ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges, size_t* count) {
  if (id) *id = captures;
  if (graph) *graph = nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaStreamIsCapturing(s, status);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* ready, cudaGraph_t, unsigned long long) { *ready = reinterpret_cast<cudaGraphExec_t>(new char); return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t s) { return work(s, "launch", "graph"); }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { delete reinterpret_cast<char*>(graph); return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) { delete reinterpret_cast<char*>(ready); return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) { *count = 1; return cudaSuccess; }
}
