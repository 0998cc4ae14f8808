# The headers of CUTLASS 4.2: -DCUTLASS_DIR=<its source tree>, else the Python package nvidia-cutlass.
# Sets TOKCORE_CUTLASS_INCLUDE_DIR, and TOKCORE_CUTLASS_MISSING to the reason where there are none.
include(PythonPackages)

set(CUTLASS_DIR "" CACHE PATH "source tree of CUTLASS 4.2 (the folder that holds include/cutlass)")

set(TOKCORE_CUTLASS_INCLUDE_DIR "")
set(TOKCORE_CUTLASS_MISSING "")
if(CUTLASS_DIR)
  set(include_dir ${CUTLASS_DIR}/include)
else()
  tokcore_python_package_dir(cutlass_library package_dir)
  set(include_dir ${package_dir}/source/include)
endif()
if(NOT EXISTS ${include_dir}/cutlass/version.h)
  set(TOKCORE_CUTLASS_MISSING
      "no CUTLASS headers: set CUTLASS_DIR or install nvidia-cutlass==4.2.0.0 with --no-deps for ${Python_EXECUTABLE}")
else()
  file(STRINGS ${include_dir}/cutlass/version.h lines REGEX "^#define CUTLASS_(MAJOR|MINOR) ")
  string(REGEX REPLACE ".*CUTLASS_MAJOR ([0-9]+).*CUTLASS_MINOR ([0-9]+).*" "\\1.\\2" version "${lines}")
  if(version VERSION_EQUAL 4.2)
    set(TOKCORE_CUTLASS_INCLUDE_DIR ${include_dir})
  else()
    set(TOKCORE_CUTLASS_MISSING "CUTLASS in ${include_dir} is version ${version}, not 4.2")
  endif()
endif()
