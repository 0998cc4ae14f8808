# How .cu files are compiled, and the tables of instantiations that they are generated from.
#
#   tokcore_add_cuda_kernels(SOURCES <file.cu>...)
#   tokcore_add_cuda_kernels(TEMPLATE <file.cu.in> VARIABLES <name>... INSTANCES "<value> <value>…"...)
#
# A template gives one file per instance, with @name@ replaced by the instance's value: nvcc needs long for a kernel and
# works on as many files at a time as there are cores, and a change to one instance compiles that one alone.
# A file whose name holds _sm90 is compiled for sm_90a only, whose instructions no other GPU has. Any other file runs
# everywhere from capability 8.0 on: machine code for sm_80 (which 8.6 and 8.9 run too) and sm_90, PTX for GPUs to come.
# Paths are relative to csrc/. Everything goes into the object library tokcore_cuda_kernels, which has no torch in it.

set(TOKCORE_NVCC_PORTABLE "-gencode=arch=compute_80,code=[sm_80,sm_90,compute_80]")
set(TOKCORE_NVCC_HOPPER "-gencode=arch=compute_90a,code=sm_90a")
set(TOKCORE_NVCC_OPTIONS
  --expt-relaxed-constexpr # CuTe calls constexpr host functions in kernels
  --Werror=cross-execution-space-call,reorder
  --display-error-number
  -Xptxas=--warn-on-spills
  -Wno-missing-field-initializers) # the host compiler gets to see designated initializers without their names

# At most as many nvcc processes as fit into memory, at 3 GB each.
cmake_host_system_information(RESULT memory_mb QUERY TOTAL_PHYSICAL_MEMORY)
math(EXPR pool_size "${memory_mb} / 3072")
if(pool_size LESS 1)
  set(pool_size 1)
endif()
set_property(GLOBAL APPEND PROPERTY JOB_POOLS nvcc=${pool_size})

function(tokcore_add_cuda_kernels)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "TEMPLATE" "SOURCES;VARIABLES;INSTANCES")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "tokcore_add_cuda_kernels: unknown arguments ${arg_UNPARSED_ARGUMENTS}")
  endif()
  list(TRANSFORM arg_SOURCES PREPEND ${PROJECT_SOURCE_DIR}/csrc/)
  set(files ${arg_SOURCES})
  if(arg_TEMPLATE)
    tokcore_instantiate_cuda_template(${arg_TEMPLATE} "${arg_VARIABLES}" "${arg_INSTANCES}" generated)
    list(APPEND files ${generated})
  endif()
  foreach(file IN LISTS files)
    cmake_path(GET file FILENAME name)
    set(architectures ${TOKCORE_NVCC_PORTABLE})
    if(name MATCHES "_sm90")
      set(architectures ${TOKCORE_NVCC_HOPPER})
    endif()
    set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${architectures}")
  endforeach()
  target_sources(tokcore_cuda_kernels PRIVATE ${files})
endfunction()

function(tokcore_instantiate_cuda_template template variables instances result)
  set(path ${PROJECT_SOURCE_DIR}/csrc/${template})
  cmake_path(GET path STEM stem)
  set(files "")
  foreach(instance IN LISTS instances)
    separate_arguments(values UNIX_COMMAND "${instance}")
    list(LENGTH values num_values)
    list(LENGTH variables num_variables)
    if(NOT num_values EQUAL num_variables)
      message(FATAL_ERROR "${template}: instance '${instance}' has ${num_values} values for: ${variables}")
    endif()
    set(suffix "")
    foreach(variable value IN ZIP_LISTS variables values)
      set(${variable} ${value})
      string(REGEX REPLACE "[^A-Za-z0-9]+" "_" word ${value})
      string(APPEND suffix _${word})
    endforeach()
    set(file ${PROJECT_BINARY_DIR}/cuda/${stem}${suffix}.cu)
    if(file IN_LIST files)
      message(FATAL_ERROR "${template}: two instances are called ${stem}${suffix}")
    endif()
    configure_file(${path} ${file} @ONLY)
    list(APPEND files ${file})
  endforeach()
  set(${result} "${files}" PARENT_SCOPE)
endfunction()
