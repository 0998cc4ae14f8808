# tokcore_cuda_headers: the CUDA 13 and CUTLASS headers as system headers, for whatever compiles device code: nvcc, or the
# C++ compiler that builds the kernels for execution on the CPU. No toolkit is needed: the headers of one come first, then
# those of the Python packages nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl.
# Sets TOKCORE_CUDA_HEADERS_MISSING to the reason where they are incomplete; the target exists only where it is empty.
include(Cutlass)

function(tokcore_find_cuda_include_dirs result)
  find_package(CUDAToolkit 13.0 QUIET)
  if(NOT CUDAToolkit_FOUND)
    set(CUDAToolkit_INCLUDE_DIRS "")
  endif()
  tokcore_python_package_dir(nvidia.cu13 package_dir)
  foreach(dir IN LISTS CUDAToolkit_INCLUDE_DIRS ITEMS ${package_dir}/include)
    if(EXISTS ${dir}/cuda_runtime.h AND EXISTS ${dir}/crt/host_config.h AND EXISTS ${dir}/cccl/cuda/std/type_traits)
      set(${result} ${dir} ${dir}/cccl PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(${result} "" PARENT_SCOPE)
endfunction()

tokcore_find_cuda_include_dirs(TOKCORE_CUDA_INCLUDE_DIRS)
set(missing ${TOKCORE_CUTLASS_MISSING})
if(NOT TOKCORE_CUDA_INCLUDE_DIRS)
  string(CONCAT reason "no CUDA 13 headers: install the toolkit, or nvidia-cuda-runtime, nvidia-cuda-crt and "
    "nvidia-cuda-cccl 13.0 for ${Python_EXECUTABLE}")
  list(APPEND missing "${reason}")
endif()
list(JOIN missing ", and " TOKCORE_CUDA_HEADERS_MISSING)

if(NOT TOKCORE_CUDA_HEADERS_MISSING AND NOT TARGET tokcore_cuda_headers)
  add_library(tokcore_cuda_headers INTERFACE)
  target_include_directories(tokcore_cuda_headers SYSTEM INTERFACE
    ${TOKCORE_CUTLASS_INCLUDE_DIR} ${TOKCORE_CUDA_INCLUDE_DIRS})
endif()
