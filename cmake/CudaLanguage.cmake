# Decides whether the CUDA library is built, and if so switches nvcc on. Building needs nvcc 13 and the CUTLASS headers,
# and no GPU. TOKCORE_CUDA=AUTO builds it where both are found and else says what is missing; ON makes that an error.
# Sets TOKCORE_BUILDS_CUDA.
include(CudaHeaders)
include(CheckLanguage)

set(TOKCORE_CUDA AUTO CACHE STRING "build the CUDA library: ON, OFF, or AUTO: where nvcc 13 and CUTLASS 4.2 are found")
set_property(CACHE TOKCORE_CUDA PROPERTY STRINGS AUTO ON OFF)

set(TOKCORE_BUILDS_CUDA OFF)
set(missing "")
if(NOT TOKCORE_CUDA)
  set(missing "TOKCORE_CUDA is OFF")
else()
  set(missing "${TOKCORE_CUDA_HEADERS_MISSING}")
  if(NOT missing)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES OFF) # every source names its own: CudaKernels.cmake
    endif()
    if(NOT CMAKE_CUDA_COMPILER)
      unset(CMAKE_CUDA_COMPILER CACHE) # nvcc may have come since the last look
    endif()
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      set(missing "no working nvcc: put it on PATH or set CMAKE_CUDA_COMPILER")
    else()
      enable_language(CUDA)
      if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0)
        set(missing "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 13.0")
      endif()
    endif()
  endif()
  if(missing AND NOT TOKCORE_CUDA STREQUAL AUTO)
    message(FATAL_ERROR "the CUDA library cannot be built: ${missing}")
  endif()
endif()
file(WRITE ${PROJECT_BINARY_DIR}/cuda_missing.txt "${missing}") # `make wheel` reads it
if(missing)
  message(STATUS "tokcore: the CUDA library is not built: ${missing}")
  add_custom_target(tokcore_cuda # so that asking for the library tells why there is none
    COMMAND ${CMAKE_COMMAND} -E echo "tokcore: the CUDA library is not built: ${missing}"
    COMMAND ${CMAKE_COMMAND} -E false
    VERBATIM)
else()
  set(TOKCORE_BUILDS_CUDA ON)
  message(STATUS "tokcore: the CUDA library is built with nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
