# Kernel sources (*_kernel.cc) are compiled once per instruction-set level, each level in a namespace of its own.
set(TOKCORE_ISA_LEVELS baseline avx2 avx512 amx)
set(TOKCORE_ISA_FLAGS_baseline "")
set(TOKCORE_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(TOKCORE_ISA_FLAGS_avx512 ${TOKCORE_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq
    -mprefer-vector-width=512
    -Wno-maybe-uninitialized -Wno-uninitialized) # gcc 12 warns inside its own intrinsics: GCC bug 105593
set(TOKCORE_ISA_FLAGS_amx ${TOKCORE_ISA_FLAGS_avx512} -mavx512bf16 -mavx512vnni -mamx-tile -mamx-bf16 -mamx-int8)

function(tokcore_add_kernels target)
  foreach(level IN LISTS TOKCORE_ISA_LEVELS)
    add_library(${target}_${level} OBJECT ${ARGN})
    target_include_directories(${target}_${level} PRIVATE ${PROJECT_SOURCE_DIR}/include)
    target_compile_definitions(${target}_${level} PRIVATE TOKCORE_ISA=${level})
    target_compile_options(${target}_${level} PRIVATE -O3 -fno-exceptions ${TOKCORE_ISA_FLAGS_${level}})
    target_sources(${target} INTERFACE $<TARGET_OBJECTS:${target}_${level}>)
  endforeach()
endfunction()
