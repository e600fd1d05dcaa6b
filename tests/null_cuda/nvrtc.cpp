// NVRTC, which translates what torch writes at run time (sinc, functions of complex numbers): to nothing here, but for a name.
#include <cstddef>

extern "C" {
#define GRANTED(name) int name(...) { return 0; }
#define NOTHING(name) int name(void*, char* text) { *text = 0; return 0; }
#define SIZE(name) int name(void*, size_t* size) { *size = 1; return 0; }

GRANTED(nvrtcAddNameExpression) GRANTED(nvrtcCompileProgram) GRANTED(nvrtcDestroyProgram)
NOTHING(nvrtcGetProgramLog) NOTHING(nvrtcGetCUBIN) NOTHING(nvrtcGetPTX) SIZE(nvrtcGetProgramLogSize) SIZE(nvrtcGetCUBINSize) SIZE(nvrtcGetPTXSize)
int nvrtcCreateProgram(void** made, ...) { *made = (void*)1; return 0; }
int nvrtcGetLoweredName(void*, const char* name, const char** lowered) { *lowered = name; return 0; }
int nvrtcVersion(int* major, int* minor) { *major = 13, *minor = 0; return 0; }
const char* nvrtcGetErrorString(int) { return "error of the null device"; }
}
