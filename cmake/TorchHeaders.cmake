# The stable ABI of libtorch needs headers and two libraries to link, not torch's own CMake package. A library built so
# runs on every torch from TORCH_TARGET_VERSION on.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
          "import importlib.util, os; print(os.path.dirname(importlib.util.find_spec('torch').origin))"
  OUTPUT_VARIABLE TOKCORE_TORCH_DIR
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE found)
if(NOT found EQUAL 0)
  message(FATAL_ERROR "torch is not installed for ${Python_EXECUTABLE}: its headers are needed to build tokcore")
endif()

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE ${TOKCORE_TORCH_DIR}/include)
target_compile_definitions(torch_stable INTERFACE TORCH_STABLE_ONLY TORCH_TARGET_VERSION=0x020b000000000000)
target_link_libraries(torch_stable INTERFACE ${TOKCORE_TORCH_DIR}/lib/libtorch_cpu.so ${TOKCORE_TORCH_DIR}/lib/libc10.so)
