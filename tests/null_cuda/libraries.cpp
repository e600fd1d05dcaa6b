// The driver and the libraries of CUDA without a device. Which arguments they take is not needed to grant a call, nor to tell a launch.
#include <cstdlib>
#include <cstring>

extern "C" {
void null_tell(const char* kind, const char* what);
int cudaDeviceGetAttribute(int* value, int which, int device);
int null_launch(const char* what) { null_tell("launch", what); return 0; }

#define GRANTED(name) int name(...) { return 0; }
#define LAUNCH(name) int name(...) { return null_launch(#name); }
#define HANDLE(name) int name(void** made) { *made = (void*)1; return 0; }
#define DESCRIPTOR(name) int name(void** made) { *made = malloc(256); return 0; }

// ---- the runtime, as far as it is asked for nothing but success
GRANTED(cudaDeviceEnablePeerAccess) GRANTED(cudaDeviceGetDefaultMemPool) GRANTED(cudaMemPoolSetAttribute) GRANTED(cudaMemcpyToSymbol)
GRANTED(cudaHostRegister) GRANTED(cudaHostUnregister) GRANTED(cudaStreamDestroy) GRANTED(cudaProfilerStart) GRANTED(cudaProfilerStop)
GRANTED(cudaUserObjectCreate) GRANTED(cudaUserObjectRelease) GRANTED(cudaGraphRetainUserObject) GRANTED(cudaStreamUpdateCaptureDependencies)

// ---- driver, which also loads what torch compiles at run time, by NVRTC or Triton
GRANTED(cuInit) HANDLE(cuCtxGetCurrent) HANDLE(cuDevicePrimaryCtxRetain) GRANTED(cuCtxSetCurrent) GRANTED(cuPointerGetAttributes)
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int) { *device = 0; return 0; }
int cuCtxGetDevice(int* device) { *device = 0; return 0; }
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { *flags = 0, *active = 1; return 0; }
int cuGetErrorString(int, const char** said) { *said = "error of the null device"; return 0; }
HANDLE(cuModuleLoad) HANDLE(cuModuleLoadData) HANDLE(cuModuleLoadDataEx) GRANTED(cuModuleUnload) GRANTED(cuFuncSetAttribute)
GRANTED(cuFuncSetCacheConfig) GRANTED(cuCtxSetLimit) GRANTED(cuTensorMapEncodeTiled) GRANTED(cuTensorMapEncodeIm2col) GRANTED(cuPointerGetAttribute)
int cuCtxGetLimit(size_t* value, int) { *value = 1024; return 0; }
int cuOccupancyMaxActiveClusters(int* count, ...) { *count = 1; return 0; }
int cuModuleGetFunction(void** made, void*, const char* name) { *made = strdup(name); return 0; }
int cuFuncGetAttribute(int* value, int which, void*) { *value = which == 0 ? 1024 : which == 4 ? 32 : 0; return 0; }  // threads, registers
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* count, void*, int, size_t) { *count = 2; return 0; }
int cuDeviceGetAttribute(int* value, int which, int device) { return cudaDeviceGetAttribute(value, which, device); }
int cuLaunchKernel(const char* function, ...) { return null_launch(function); }
int cuLaunchKernelEx(void*, const char* function, ...) { return null_launch(function); }

// ---- cuBLAS, one launch each
HANDLE(cublasCreate_v2) GRANTED(cublasDestroy_v2) GRANTED(cublasSetStream_v2) GRANTED(cublasSetWorkspace_v2) GRANTED(cublasSetMathMode)
GRANTED(cublasSetPointerMode_v2) GRANTED(cublasSetSmCountTarget)
int cublasGetMathMode(void*, int* mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void*, int* mode) { *mode = 0; return 0; }
LAUNCH(cublasSgemm_v2) LAUNCH(cublasDgemm_v2) LAUNCH(cublasGemmEx) LAUNCH(cublasSgemmEx) LAUNCH(cublasSgemmStridedBatched)
LAUNCH(cublasDgemmStridedBatched) LAUNCH(cublasGemmStridedBatchedEx) LAUNCH(cublasCgemm_v2) LAUNCH(cublasZgemm_v2)
LAUNCH(cublasCgemmStridedBatched) LAUNCH(cublasZgemmStridedBatched) LAUNCH(cublasSgemv_v2) LAUNCH(cublasDgemv_v2) LAUNCH(cublasSdot_v2)
LAUNCH(cublasDdot_v2) LAUNCH(cublasDotEx) LAUNCH(cublasLtMatmul)
HANDLE(cublasLtMatmulDescCreate) HANDLE(cublasLtMatrixLayoutCreate) HANDLE(cublasLtMatmulPreferenceCreate)
GRANTED(cublasLtMatmulDescDestroy) GRANTED(cublasLtMatmulDescSetAttribute) GRANTED(cublasLtMatmulPreferenceDestroy)
GRANTED(cublasLtMatmulPreferenceSetAttribute) GRANTED(cublasLtMatrixLayoutDestroy) GRANTED(cublasLtMatrixLayoutSetAttribute)
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* found, int* count) { memset(found, 0, 64), *count = 1; return 0; }

// ---- cuFFT, one launch each
int cufftCreate(int* plan) { *plan = 1; return 0; }
int cufftXtMakePlanMany(int, int, void*, void*, long long, long long, int, void*, long long, long long, int, long long, size_t* workspace, int) { *workspace = 0; return 0; }
GRANTED(cufftDestroy) GRANTED(cufftSetAutoAllocation) GRANTED(cufftSetStream) GRANTED(cufftSetWorkArea) LAUNCH(cufftXtExec)
LAUNCH(cufftExecC2C) LAUNCH(cufftExecR2C) LAUNCH(cufftExecC2R) LAUNCH(cufftExecZ2Z) LAUNCH(cufftExecD2Z) LAUNCH(cufftExecZ2D)

// ---- cuDNN by its older interface (TORCH_CUDNN_V8_API_DISABLED=1), one launch each
HANDLE(cudnnCreate) GRANTED(cudnnDestroy) GRANTED(cudnnSetStream)
DESCRIPTOR(cudnnCreateConvolutionDescriptor) DESCRIPTOR(cudnnCreateFilterDescriptor) DESCRIPTOR(cudnnCreateTensorDescriptor)
DESCRIPTOR(cudnnCreateActivationDescriptor) DESCRIPTOR(cudnnCreatePoolingDescriptor) DESCRIPTOR(cudnnCreateDropoutDescriptor)
GRANTED(cudnnDestroyConvolutionDescriptor) GRANTED(cudnnDestroyFilterDescriptor) GRANTED(cudnnDestroyTensorDescriptor)
GRANTED(cudnnDestroyActivationDescriptor) GRANTED(cudnnSetTensorNdDescriptor) GRANTED(cudnnSetFilterNdDescriptor)
GRANTED(cudnnSetConvolutionNdDescriptor) GRANTED(cudnnSetConvolutionGroupCount) GRANTED(cudnnSetConvolutionMathType)
GRANTED(cudnnSetActivationDescriptor) GRANTED(cudnnSetPooling2dDescriptor)
struct Found { int algorithm, status; float time; size_t memory; int deterministic, math, reserved[3]; };
#define ALGORITHM(name) int name(void*, void*, void*, void*, void*, int, int* count, Found* found) { \
  memset(found, 0, sizeof *found), found->algorithm = found->deterministic = *count = 1; return 0; }
ALGORITHM(cudnnGetConvolutionForwardAlgorithm_v7) ALGORITHM(cudnnGetConvolutionBackwardDataAlgorithm_v7)
ALGORITHM(cudnnGetConvolutionBackwardFilterAlgorithm_v7)
#define FASTEST(name) int name(void*, void*, void*, void*, void*, void*, void*, void*, int, int* count, Found* found, void*, size_t) { \
  memset(found, 0, sizeof *found), found->algorithm = found->deterministic = *count = 1; return 0; }
FASTEST(cudnnFindConvolutionForwardAlgorithmEx) FASTEST(cudnnFindConvolutionBackwardDataAlgorithmEx)
FASTEST(cudnnFindConvolutionBackwardFilterAlgorithmEx)
#define WORKSPACE(name) int name(void*, void*, void*, void*, void*, int, size_t* size) { *size = 0; return 0; }
WORKSPACE(cudnnGetConvolutionForwardWorkspaceSize) WORKSPACE(cudnnGetConvolutionBackwardDataWorkspaceSize)
WORKSPACE(cudnnGetConvolutionBackwardFilterWorkspaceSize)
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void*, int, int, void*, void*, void*, void*, void*, size_t* size) { *size = 0; return 0; }
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void*, int, int, void*, void*, void*, void*, void*, void*, void*, size_t* size) { *size = 0; return 0; }
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void*, int, int, void*, void*, size_t* size) { *size = 0; return 0; }
LAUNCH(cudnnConvolutionForward) LAUNCH(cudnnConvolutionBackwardData) LAUNCH(cudnnConvolutionBackwardFilter)
LAUNCH(cudnnConvolutionBiasActivationForward) LAUNCH(cudnnBatchNormalizationForwardTrainingEx) LAUNCH(cudnnBatchNormalizationBackwardEx)
LAUNCH(cudnnBatchNormalizationForwardInference)
}
