from caffe_port.cli import main

if __name__ == "__main__":  # a process of `survey` imports this file again
    main()
