// The dozen functions of the CUDA driver that the hooks call, as far as a machine without one can have them: every call is
// noted in `calls`, a context must be current where the real driver asks for one, and a launch notes what it was given.
#include <stdio.h>
#include <string.h>

#define API __attribute__((visibility("default")))
enum { OK = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

API char calls[16384];
API unsigned long long given[16];
API int argument_count;
static int context, module, functions[3], current, mode;
static const char* names[3] = {"gpuwatch_chunks", "gpuwatch_chunks_histogram", "gpuwatch_rows"};

static void note(const char* what) { strcat(strcat(calls, what), "\n"); }

API int cuDriverGetVersion(int* version) { *version = 13000; return OK; }
API int cuGetErrorName(int status, const char** text) {
  *text = status == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : status == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR";
  return OK;
}
API int cuDeviceGet(int* device, int index) { *device = index; return index == 0 ? OK : INVALID_VALUE; }
API int cuDevicePrimaryCtxRetain(void** found, int device) { note("retain"); *found = &context; return device ? INVALID_VALUE : OK; }
API int cuThreadExchangeStreamCaptureMode(int* exchanged) {
  int before = mode;
  mode = *exchanged;
  *exchanged = before;
  note(mode == 2 ? "relaxed" : "global");
  return OK;
}
API int cuCtxPushCurrent_v2(void* pushed) { note("push"); current = pushed == &context; return OK; }
API int cuCtxPopCurrent_v2(void** popped) { note("pop"); *popped = &context; current = 0; return OK; }
API int cuCtxSetCurrent(void* set) { note("set"); current = set == &context; return OK; }
API int cuModuleLoadData(void** loaded, const void* image) {
  note("load");
  if (!current || mode != 2) return INVALID_CONTEXT;
  *loaded = &module;
  return memcmp(image, "code", 4) ? INVALID_VALUE : OK;
}
API int cuModuleGetFunction(void** function, void* of, const char* name) {
  for (int i = 0; i < 3; i++)
    if (of == &module && !strcmp(name, names[i])) { *function = &functions[i]; return OK; }
  return NOT_FOUND;
}
API int cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == 4 ? 40 + (int)((int*)function - functions) : -1;
  return OK;
}
API int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                       void* stream, void** arguments, void** extra) {
  char text[256];
  if (!current) { note("launch without a context"); return INVALID_CONTEXT; }
  snprintf(text, sizeof text, "launch %s %u %u %u %u %u %u %u %p %p", names[(int*)function - functions], gx, gy, gz, bx, by, bz, shared,
           stream, (void*)extra);
  note(text);
  for (int i = 0; i < argument_count; i++) given[i] = *(unsigned long long*)arguments[i];
  return OK;
}
